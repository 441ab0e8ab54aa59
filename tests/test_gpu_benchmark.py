"""benchmarks/gpu.py: its pieces cost each other nothing, and its results are kept."""

import json
import os
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import gpu
import gpu_check
import gpu_job
import gpu_profile
import gpu_report
import gpu_step
import gpu_train
import psutil
import pytest

ROOT = pathlib.Path(__file__).parent.parent
HERE = ROOT / "benchmarks"

# --- the driver

# Pieces that need nothing of lbsgd, as real processes.
SAYS = "from gpu_job import given\njob, _ = given()\njob.put('said', 1)\n"
FAKES = {
    "fine": SAYS,
    "fails": SAYS + "raise ValueError('no such kernel')\n",
    "hangs": "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "time.sleep(3600)\n",
    "leaves": "import subprocess, sys\nfrom gpu_job import given\njob, _ = given()\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
    "job.put('child', 1, pid=child.pid)\n",
}


def measure_fakes(tmp_path, monkeypatch, seconds: dict[str, float], minutes: float = 30):
    """Whether all was fine, the results by piece, and the outcomes, of fakes with such limits."""
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "find_machine", lambda *_: {"device": "none"})
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    for name in seconds:
        (tmp_path / f"{name}.py").write_text(FAKES[name])
    pieces = [
        gpu.Piece(name, f"{name}.py", (), limit, least=0.5) for name, limit in seconds.items()
    ]
    out = tmp_path / "out"
    args = gpu.parse(["all", "--out", str(out), f"--minutes={minutes}", "--cpu_trial"])
    fine = gpu.measure(args, pieces)
    return fine, gpu_report.collect([out]), gpu_report.read_lines(out / "pieces.jsonl")


def test_a_piece_that_fails_or_hangs_costs_no_other(tmp_path, monkeypatch):
    limits = {"fails": 800, "hangs": 0.5, "fine": 800}
    fine, results, outcomes = measure_fakes(tmp_path, monkeypatch, limits)
    assert not fine
    assert [x["exit_code"] for x in outcomes] == [1, None, 0]
    assert [x["in_time"] for x in outcomes] == [True, False, True]
    assert "no such kernel" in outcomes[0]["last"][-1]
    for name in ("fails", "fine"):  # what was measured before is there
        (line,) = results[name]
        assert (line["what"], line["n"], line["machine"]) == ("said", 1, {"device": "none"})


def test_what_a_piece_started_ends_with_it(tmp_path, monkeypatch):
    fine, results, _ = measure_fakes(tmp_path, monkeypatch, {"leaves": 800})
    (line,) = results["leaves"]
    assert fine
    for _ in range(600):
        try:
            if psutil.Process(line["pid"]).status() == psutil.STATUS_ZOMBIE:
                break
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    else:
        pytest.fail("it goes on")


def test_without_time_nothing_is_begun(tmp_path, monkeypatch):
    fine, results, outcomes = measure_fakes(tmp_path, monkeypatch, {"fine": 9, "fails": 9}, 0)
    assert not fine
    assert results.keys() == {"pieces"}
    assert [x["skipped"] for x in outcomes] == ["no time left"] * 2


@pytest.mark.parametrize(
    ("planned", "left", "expected"),
    [
        ([120], 500, 500),  # alone it has everything
        ([120, 90], 500, 500 * 120 / 210),
        ([120, 90], 150, 120),  # what is worth less goes without
        ([120, 90], 100, 100),
    ],
)
def test_a_piece_has_what_is_planned_or_its_share(planned, left, expected):
    pieces = [gpu.Piece("x", "x.py", (str(seconds),), seconds) for seconds in planned]
    assert gpu.share(pieces, 0, left) == pytest.approx(expected)


@pytest.mark.parametrize("minutes", [5, 9, 10, 30])
def test_each_part_has_time_where_every_piece_takes_its_limit(minutes):
    left, begun = 60.0 * minutes - gpu.GRACE_SECONDS, []
    for number, piece in enumerate(gpu.PIECES):
        limit = gpu.share(gpu.PIECES, number, left)
        if limit >= piece.least:
            begun.append(piece.part)
            left -= limit
    assert set(begun) == set(gpu.PARTS)
    assert left >= 0


def test_the_scripts_of_all_pieces_are_there():
    assert all((HERE / piece.script).is_file() for piece in gpu.PIECES)
    assert set(gpu_report.TABLES) == set(gpu.PARTS)


@pytest.mark.parametrize("arguments", [["chekc"], ["report"], ["table", "x"], ["all", "--data=no"]])
def test_mistakes_of_the_command_line_are_told(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main(arguments)
    assert stop.value.code == 2
    assert "gpu.py" in capsys.readouterr().err.splitlines()[-1]


def test_without_a_gpu_a_line_says_so(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "gpu.py"), "check", f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks/gpu.py: no GPU that JAX can use")
    assert len(done.stderr.splitlines()) == 1


# --- what is made of measurements


def test_differences_are_relative_and_grow():
    ours = [{"train_loss": 2.0, "gradient_norm": x} for x in (1.0, 1.1, 1.0)]
    others = [{"train_loss": 2.0, "gradient_norm": x} for x in (1.0, 1.0, 1.01)]
    assert gpu_check.differences(ours, others) == pytest.approx([0.0, 0.1, 0.1])


def test_the_bound_of_float32_tells_it_from_tf32():
    """Rounding to 10 bits of fraction is 2^13 times that of float32, seen to be 4e-8 on a CPU."""
    assert 4e-8 < gpu_check.FLOAT32 < 4e-8 * 2**13


@pytest.mark.parametrize(("works_at", "runs"), [(1, 1), (2, 2), (None, 2)])
def test_a_run_that_fails_is_tried_again_once(works_at, runs, tmp_path, monkeypatch):
    tried = []

    def run(self, name, of=""):
        tried.append(name)
        return [{"train_loss": 1.0}] if tried.count(name) == works_at else []

    monkeypatch.setattr(gpu_check.Runs, "run", run)
    job = gpu_job.Job("check", str(tmp_path), str(tmp_path), "", False, 0.0, 1e12)
    with ThreadPoolExecutor(1) as pool:
        all_runs = gpu_check.Runs(job, pool)
        for _ in range(2):  # two comparisons are of it
            if works_at:
                assert all_runs.updates("GPU float64") == [{"train_loss": 1.0}]
            else:
                with pytest.raises(RuntimeError, match="GPU float64 fails"):
                    all_runs.updates("GPU float64")
    assert tried.count("GPU float64") == runs


PROGRAM = """
%fused_computation.1 (param_0.3: f32[8,8]) -> f32[] {
  %param_0.3 = f32[8,8]{1,0} parameter(0)
  ROOT %reduce.1 = f32[] reduce(%param_0.3, %constant.1), dimensions={0,1}, to_apply=%region_1.2
}

ENTRY %main.3 (a.1: f32[8,8], b.1: bf16[8,4]) -> f32[] {
  %a.1 = f32[8,8]{1,0} parameter(0), metadata={op_name="a"}
  %b.1 = bf16[8,4]{1,0} parameter(1), metadata={op_name="b"}
  %cudnn-conv.2 = (bf16[8,4]{1,0}, u8[100]{0}) custom-call(%a.1, %b.1), custom_call_target="conv"
  ROOT %fusion = f32[] fusion(%a.1), kind=kLoop, calls=%fused_computation.1
}
"""


def test_bytes_of_an_operation_are_those_of_operands_and_results():
    moved = gpu_profile.traffic(PROGRAM)
    assert moved["cudnn-conv.2"] == 8 * 8 * 4 + 8 * 4 * 2 + 8 * 4 * 2 + 100
    assert moved["fusion"] == 8 * 8 * 4 + 4
    assert gpu_profile.bytes_of("(pred[3], f8e4m3fn[2,2]{1,0}, s64[], token[])") == 3 + 4 + 8


def test_operations_are_summed_over_kernels_and_updates():
    Event = gpu_profile.Event
    events = [Event("cudnn-conv.2", kernel, 1e6) for kernel in ("layout", "conv", "conv")] * 2
    events += [Event("cudnn-conv.7", "conv", 5e6), Event("copy", "copy", 1e6)] * 2
    program = """
  %a.1 = s8[50]{0} parameter(0), metadata={op_name="a"}
  %cudnn-conv.2 = s8[50]{0} custom-call(%a.1), custom_call_target="conv", metadata={op_name="f"}
  %cudnn-conv.7 = s8[50]{0} custom-call(), custom_call_target="conv"
"""
    rows = gpu_profile.table(events, program, updates=2)
    assert rows["busy_ms"] == pytest.approx(9.0)
    assert rows["known"] == pytest.approx(8 / 9)  # not of the copy
    assert [row["operation"] for row in rows["operations"]][:2] == ["cudnn-conv.7", "cudnn-conv.2"]
    conv = rows["operations"][1]
    assert (conv["kernel"], conv["ms"], conv["calls"], conv["bytes"]) == ("conv", 3.0, 1.0, 100.0)
    assert (conv["source"], rows["operations"][0]["source"]) == ("f", "")
    first = rows["kinds"][0]
    assert (first["kind"], first["ms"], first["bytes"]) == ("cudnn-conv", 8.0, 150.0)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Stream #7(Compute)", "XLA Ops", "XLA Modules"], ["Stream #7(Compute)"]),
        (["XLA Ops", "XLA Modules"], ["XLA Ops"]),
        (["Steps"], []),
    ],
)
def test_work_of_the_device_is_on_its_streams_or_xla_s_lines(lines, expected):
    names = [("/device:GPU:0", line) for line in lines] + [("/host:CPU", "XLA Ops")]
    found = gpu_profile.lines_of_device(names, trial=False)
    assert found == {("/device:GPU:0", line) for line in expected}


def test_a_profile_is_of_single_kernels(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    (piece,) = (piece for piece in gpu.PIECES if piece.script == "gpu_profile.py")
    own = gpu.environment("profile", False, "", piece.graphs)["XLA_FLAGS"].split()
    assert own == ["--xla_gpu_autotune_level=0", "--xla_gpu_enable_command_buffer="]
    assert gpu.environment("step", False, "")["XLA_FLAGS"] == "--xla_gpu_autotune_level=0"


@pytest.mark.long
def test_multiply_adds_are_those_of_the_paper():
    """ResNet-50 has 4.09 G on 224 pixels with the stride in the 3x3 convolutions."""
    assert gpu_step.model_flops("resnet50", 224) == pytest.approx(6 * 4.09e9, rel=1e-3)


def test_the_peak_is_that_of_the_device():
    assert gpu_step.peak_of("NVIDIA H100 80GB HBM3") == 989.4e12
    assert gpu_step.peak_of("NVIDIA H100 PCIe") == 756e12
    assert gpu_step.peak_of("cpu") is None


def test_epochs_are_as_many_as_two_rows_have_time_for():
    rate = gpu_train.EXAMPLES / 2.0  # two seconds an epoch
    speed = gpu_train.Speed(rate, 25.0)  # an evaluation takes 0.4 s
    row = gpu_train.STOP_SECONDS + 25.0 + 4 * 0.4
    assert gpu_train.epochs_for(2 * (row + 41), speed) == 20
    assert gpu_train.epochs_for(1.0, speed) == 1
    assert gpu_train.epochs_for(1e6, speed) == 164


@pytest.mark.parametrize(("epochs", "between"), [(1, 1.0), (5, 1.0), (20, 4.0), (164, 32.8)])
def test_a_row_is_evaluated_at_most_five_times(epochs, between):
    flags = dict(flag.split("=") for flag in gpu_train.row_flags(epochs))
    assert float(flags["--config.evaluation.every_epochs"]) == between
    assert flags["--config.checkpoint.every_epochs"] == "0"


# --- the report

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "packages": {"jax": "0.11.2"}, "cpus": 16}
MACHINE |= {"git_commit": "0123456789abcdef", "backend": "gpu", "date": "2026-01-02"}
CASE = ["resnet50", 224, 256, 32, "bfloat16"]


def line(part: str, what: str, n: int = 1, **values: object) -> str:
    base = {"part": part, "what": what, "n": n, "seconds": 1.0, "trial": False}
    return json.dumps(base | {"machine": MACHINE} | values) + "\n"


def step_line(ours: float, **values: object) -> str:
    rates = {"lbsgd": [ours] * 3, "plain": [1000.0] * 3}
    memory = {key: {"temp_size_in_bytes": 2_500_000_000} for key in rates}
    medians = {"lbsgd": ours, "plain": 1000.0}
    ratio, mfu = [ours / 1000] * 3, {"lbsgd": 0.25, "plain": None}
    found = {"rates": rates, "images_per_second": medians, "ratio": ratio, "mfu": mfu}
    return line("step", "step", 3, case=CASE, memory=memory, **found, **values)


@pytest.fixture
def out(tmp_path):
    """What two calls would leave, the last line of one cut short."""
    check = {"updates": 5, "difference": 2e-10, "bound": 1e-8, "holds": True, "bitwise": False}
    kind = {"kind": "cudnn-conv", "calls": 53.0, "ms": 20.0, "bytes": 4e10}
    operation = {"operation": "cudnn-conv.2", "kernel": "void conv<a|b>" + "x" * 99, "calls": 1.0}
    operation |= {"ms": 2.0, "bytes": 4e9, "source": ""}
    costs = {"update_seconds": {"1": [0.1, 0.2, 0.1], "4": [0.2, 0.2, 0.2]}}
    costs |= {"temporary_bytes": {"1": 4_000_000_000, "4": 1_000_000_000}, "case": CASE}
    row = {"epochs": 20.0, "updates": 1000, "val_error": 12.25, "images_per_second": 20000.0}
    row |= {"data_wait_percent": 3.0, "ended": True, "epochs_asked": 20}
    rates = {"lbsgd, packed": [9000.0, 9500.0, 9400.0]}
    files = {
        "check": line("check", "GPU = CPU, float64", **check) + '{"part": "che',
        "step": step_line(900.0) + step_line(950.0) + line("step", "accumulation", 3, **costs),
        "profile": line(
            "profile",
            "profile of lbsgd",
            case=CASE,
            wall_ms=50.0,
            busy_ms=40.0,
            kinds=[kind],
            operations=[operation] * 11,
        ),
        "train": line("train", "kn=128", config="cifar10.py:batch=128", **row)
        + line("train", "kn=8192", 0, failed="exit code 3"),
        "input": line("input", "JPEGs", 3, threads=16, batch_size=64, rates=rates),
        "pieces": json.dumps({"piece": "train", "exit_code": None, "in_time": False}) + "\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def test_results_become_a_file_and_tables(out, tmp_path):
    path = tmp_path / "gpu.json"
    gpu_report.write([out], path)
    text = gpu_report.table(path)
    assert "| GPU = CPU, float64 | 5 | 2.0e-10 | 1.0e-08 | yes | no |" in text
    step = "| resnet50 | 224 | 256 | 32 | bfloat16 | NVIDIA H100 80GB HBM3 |"
    assert f"{step} lbsgd | 950 | 0.95 (0.95 to 0.95) | 25.0 | 2.50 |" in text  # the later
    assert f"{step} plain Flax | 1,000 |  |  | 2.50 |" in text
    assert "| cudnn-conv | 53.0 | 20.000 | 50.0 | 40.000 | 2,000 |" in text
    assert "the device busy for 40.0, 156 MB an image:" in text  # 4e10 / 256
    longest = "`void conv<a/b>" + "x" * (60 - len("void conv<a/b>")) + "`"
    row = f"| cudnn-conv.2 | 1.0 | 2.000 | 5.0 | 4.000 | 2,000 | {longest} |"
    assert text.count(row) == 10  # the costliest
    case = "| resnet50 | 224 | 256 | 32 | bfloat16 |"
    assert f"{case} 1 | 2,560 |  | 4.00 |" in text
    assert f"{case} 4 | 1,280 | 2.00 (1.00 to 2.00) | 1.00 |" in text
    assert "| kn=128 | 20.0 | 1,000 | 12.25 | 20,000 | 3.0 |" in text
    assert "| JPEGs | lbsgd, packed | 64 | 16 | 9,400 (9,000 to 9,500) |" in text
    source = "NVIDIA H100 80GB HBM3, 16 CPU cores; jax 0.11.2; commit 0123456789; 2026-01-02; n=3."
    assert source in text
    assert "kn=8192: exit code 3." in text
    assert "train: did not end well." in text


def test_a_trial_is_no_result(out, tmp_path):
    (out / "step.jsonl").write_text(step_line(900.0, **{"trial": True}))
    with pytest.raises(ValueError, match="trial"):
        gpu_report.write([out], tmp_path / "gpu.json")
    assert not (tmp_path / "gpu.json").exists()


def test_nothing_is_no_result(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        gpu_report.write([tmp_path], tmp_path / "gpu.json")
    assert "No figure of a GPU exists yet" in gpu_report.table(tmp_path / "gpu.json")


@pytest.mark.long
def test_a_trial_checks_and_measures_on_the_cpu(tmp_path):
    command = [sys.executable, str(HERE / "gpu.py"), "all", f"--out={tmp_path}"]
    done = subprocess.run([*command, "--cpu_trial", "--minutes=60"], capture_output=True, text=True)
    results = gpu_report.collect([tmp_path])
    assert done.returncode == 0, results["pieces"]
    assert results.keys() == {*gpu.PARTS, "pieces"}
    held = {x["what"]: x["holds"] for x in results["check"] if "holds" in x}
    assert len(held) == 5
    (found,) = (x for x in results["step"] if x["what"] == "accumulation")
    assert found["update_seconds"].keys() == {"1", "2"}
    assert all(x["operations"] for x in results["profile"] if "kinds" in x)
    assert all(held.values()), held
    assert [x["what"] for x in results["step"]].count("step") == 2  # tiny cases, of 2 and 1 workers
    assert "A trial, no result." in done.stdout
