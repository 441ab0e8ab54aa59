"""What the processes of a launcher see, and how their ends become one exit code."""

import re
import signal

import pytest
from launching import launch, said, starts, wait_until_dead, words

# What the processes see


def test_processes_get_their_flags_environment_and_nothing_to_read(tmp_path):
    program = (
        "print(sys.argv[1:], os.environ['WHOSE'], os.environ['PYTHONUNBUFFERED'], "
        "repr(sys.stdin.read()), os.getsid(0) == os.getpid())"
    )
    (tmp_path / "input").write_text("of the launcher")
    with (tmp_path / "input").open() as file:
        code, out, err = launch(tmp_path, program, processes=3, stdin=file)
    assert code == 0, err
    port = re.search(r"--coordinator=127\.0\.0\.1:(\d+)'", out).group(1)
    assert sorted(out.splitlines()) == [
        f"[{i}] ['--coordinator=127.0.0.1:{port}', '--num_processes=3', '--process_id={i}', "
        f"'--and', 'this one'] of {i} 1 '' True"
        for i in range(3)
    ]


def test_launcher_names_the_pids(tmp_path):
    _, _, err = launch(tmp_path, "")
    pids = starts(tmp_path, 0) + starts(tmp_path, 1)
    assert err == f"[launcher] processes 0, 1 started: pid {pids[0]}, {pids[1]}\n"


def test_every_start_has_a_port_of_its_own(tmp_path):
    program = "note('ports', flags['coordinator']); end(1)"
    launch(tmp_path, program, processes=1, max_restarts=2)
    ports = words(tmp_path, "ports")
    assert len(ports) == 3
    assert len(set(ports)) > 1  # the system may well give one twice


# How they end

ABRT, KILL, SEGV, TERM = (
    -signal.SIGABRT.value,
    -signal.SIGKILL.value,
    -signal.SIGSEGV.value,
    -signal.SIGTERM.value,
)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([0], 0),
        ([0, 0], 0),
        ([75, 75], 75),
        ([0, 75], 75),
        ([2, 2], 2),
        ([3, 3], 3),
        ([75, 3], 3),
        ([3, 2], 2),
        # What the program says of itself counts more than what the others died of.
        ([2, ABRT], 2),
        ([ABRT, 2], 2),
        ([1, 2], 2),
        ([3, 1], 3),
        ([75, ABRT], 75),
        ([75, SEGV], 75),
        ([ABRT, 75], 75),
        ([TERM, 75], 75),
        # But who was killed from outside did not die of that.
        ([KILL, 2], 137),
        ([SEGV, 75], 139),
        ([1], 1),
        ([7, 0], 7),
        ([0, ABRT], 134),
        ([1, ABRT], 1),
        ([ABRT, 1], 134),
        ([0, 0, SEGV], 139),
        ([-34], 128 + 34),  # a signal without a name
    ],
)
def test_exit_code_and_whether_the_run_is_restarted(tmp_path, ends, code):
    """The processes end one after the other, in the order of `ends`."""
    program = f"""
if me:
    wait_for(f"over-{{me - 1}}-{{start}}")
    wait_until_reaped(me - 1)
pathlib.Path(f"over-{{me}}-{{start}}").touch()
end({ends}[me])
"""
    constants = {"COLLECT_SECONDS": 600, "FOLLOW_SECONDS": 600}
    how = {"processes": len(ends), "max_restarts": 1, "constants": constants}
    found, _, err = launch(tmp_path, program, **how)
    assert found == code, err
    assert len(starts(tmp_path)) == (1 if code in (0, 2, 3, 75) else 2), err
    assert bool(said(err)) == (code not in (0, 2, 3, 75))


@pytest.mark.parametrize(
    ("end", "text"),
    [(KILL, "process 1 died (SIGKILL)"), (7, "process 1 failed (exit code 7)")],
)
def test_group_is_restarted_and_the_culprit_named(tmp_path, end, text):
    """Process 0 hangs in the first start, and is not waited for."""
    program = f"""
if start == 1:
    if me:
        wait_for("there")
        end({end})
    on_signals(None)
    pathlib.Path("there").touch()
    ready()
"""
    code, _, err = launch(tmp_path, program, max_restarts=3)
    assert code == 0, err
    assert said(err) == [
        f"{text} after T s; ending the others; restarting the run (restart 1 of 3)"
    ]
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 2
    assert words(tmp_path, "signals-0") == []


def test_restarts_are_counted(tmp_path):
    code, _, err = launch(tmp_path, "end(40 + start)", processes=1, max_restarts=2)
    assert code == 43
    assert said(err) == [
        "process 0 failed (exit code 41) after T s; restarting the run (restart 1 of 2)",
        "process 0 failed (exit code 42) after T s; restarting the run (restart 2 of 2)",
        "process 0 failed (exit code 43) after T s; giving up after 2 restarts, with exit code 43",
    ]


@pytest.mark.parametrize(("restarts", "text"), [(0, "0 restarts"), (1, "1 restart")])
def test_plural_of_restarts(tmp_path, restarts, text):
    _, _, err = launch(tmp_path, "end(9)", processes=1, max_restarts=restarts)
    assert said(err)[-1].endswith(f"; giving up after {text}, with exit code 9")


def test_killed_one_is_named_though_others_fail_of_it_at_once(tmp_path):
    """Found ended together, the one that failed of it comes first by its number."""
    program = """
if me == 1:
    wait_for("there")
    end(-9)
pathlib.Path("there").touch()
other = int(pathlib.Path("starts-1").read_text()) if pathlib.Path("starts-1").exists() else None
ready()
"""
    first = """
reap = process_group.Group._reap
def both(self):
    if any(p.popen.poll() == -9 for p in self._running):
        self._running[0].popen.send_signal(signal.SIGABRT)
        self._running[0].popen.wait()
    reap(self)
process_group.Group._reap = both
"""
    code, _, err = launch(tmp_path, program, first=first)
    assert code == 137
    assert said(err)[0].startswith("process 1 died (SIGKILL) after T s; giving up")


def test_none_is_left_when_one_has_failed(tmp_path):
    """Nor of the processes that they had started."""
    program = """
if me:
    wait_for("helper")
    wait_for("heir")
    end(1)
for name in ("helper", "heir"):
    helper = subprocess.Popen(["sleep", "600"])
    note(name, str(helper.pid))
on_signals(None)
ready()
"""
    code, _, _ = launch(tmp_path, program)
    assert code == 1
    wait_until_dead([*starts(tmp_path), int(*words(tmp_path, "helper"))])


def test_what_a_process_leaves_behind_is_ended_with_it(tmp_path):
    program = "note('helper', str(subprocess.Popen(['sleep', '600']).pid))"
    code, _, _ = launch(tmp_path, program, processes=1)
    assert code == 0
    wait_until_dead([int(*words(tmp_path, "helper"))])


@pytest.mark.parametrize("ended", [0, 75])
def test_who_does_not_come_to_an_end_has_failed(tmp_path, ended):
    program = f"""
if start == 1 and me != 1:
    ready()
end({ended})
"""
    code, _, err = launch(tmp_path, program, processes=3, max_restarts=1, grace_seconds=0.5)
    assert code == ended, err
    assert said(err) == [
        f"processes 0, 2 are still running 0.5 s after process 1 ended (exit code {ended}); "
        "killing them; restarting the run (restart 1 of 1)"
    ]
    wait_until_dead(starts(tmp_path, 0) + starts(tmp_path, 2))


def test_death_after_another_ended_well_is_seen_at_once(tmp_path):
    """And not when the grace of those that are left is over."""
    program = """
pathlib.Path(f"there-{me}").touch()
if me == 0:
    end(0)
if me == 1:
    wait_for("there-0")
    wait_until_reaped(0)
    end(-9)
ready()
"""
    code, _, err = launch(tmp_path, program, processes=3)
    assert code == 137
    assert said(err)[0].startswith("process 1 died (SIGKILL) after T s; ending the others;")


@pytest.mark.parametrize("ended", [2, 3])
@pytest.mark.parametrize(("grace", "leave"), [(0.5, 600), (600, 0.5)])
def test_others_do_not_outlive_a_mistake(tmp_path, ended, grace, leave):
    program = f"""
if me:
    end({ended})
ready()
"""
    how = {"max_restarts": 1, "grace_seconds": grace, "constants": {"FOLLOW_SECONDS": leave}}
    code, _, err = launch(tmp_path, program, **how)
    assert code == ended
    assert said(err) == [
        f"process 0 is still running 0.5 s after process 1 ended (exit code {ended}); killing it"
    ]
    wait_until_dead(starts(tmp_path))
