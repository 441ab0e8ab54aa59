"""The curves of a run, and that no run fails of them."""

import os
import subprocess
import sys

import pytest

from lbsgd import curves, monitor, train
from lbsgd.config import default_config, resolve


def test_training_error_is_averaged_between_evaluations():
    lines = [
        {"epoch": 0.5, "train_error": 80.0},
        {"epoch": 1.0, "train_error": 60.0},
        {"epoch": 1.0, "val_error": 50.0},
        {"epoch": 2.0, "train_error": 40.0},
        {"epoch": 2.0, "val_error": 30.0},
        {"epoch": 2.5, "train_error": 20.0},
    ]
    assert curves._means_between_evaluations(lines) == ([1.0, 2.0], [70.0, 40.0])


def test_curves_have_the_batch_size_where_it_changes():
    def lines(*sizes: float) -> list[dict]:
        both = ({"epoch": float(i), "learning_rate": 0.1 * i} for i in range(len(sizes)))
        return [{**line, "batch_size": size} for line, size in zip(both, sizes)]

    evaluation = {"epoch": 1.0, "val_error": 5.0}
    constant = curves.curves([*lines(64.0, 64.0), evaluation], "x")
    assert [panel.get_ylabel() for panel in constant.axes] == ["error %", "learning rate"]
    grown = curves.curves([*lines(64.0, 64.0, 128.0), evaluation], "x")
    assert [panel.get_ylabel() for panel in grown.axes][1:] == ["learning rate", "batch size"]
    (line,) = grown.axes[2].get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 1, 2], [64, 64, 128])
    assert line.get_drawstyle() == "steps-pre"
    assert [panel.get_xlabel() for panel in grown.axes] == ["", "", "epochs"]


LINES = [
    {"step": 1, "epoch": 0.5, "train_error": 80.0, "learning_rate": 0.1},
    {"step": 2, "epoch": 1.0, "val_error": 50.0},
]


def test_a_picture_is_drawn(tmp_path):
    assert curves.draw(LINES, tmp_path / "curves.png", "title") == ""
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_a_line_that_says_why(tmp_path):
    folder = tmp_path / "curves.png"
    folder.mkdir()
    assert curves.draw(LINES, folder, "x") == f"{folder} cannot be written (Is a directory)"
    full = tmp_path / "full.png"
    full.symlink_to("/dev/full")
    assert curves.draw(LINES, full, "x") == f"{full} cannot be written (No space left on device)"
    path = tmp_path / "x.png"
    why = f"{path} cannot be drawn (KeyError: 'epoch')"
    assert curves.draw([{"learning_rate": 1.0}], path, "x") == why


DRAW = """
import os, pathlib, sys
from lbsgd import curves
print(curves.draw(eval(sys.argv[2]), pathlib.Path(sys.argv[1]), "x"), os.environ["MPLBACKEND"])
import matplotlib
print(matplotlib.rcParams._get("backend"))
"""


@pytest.mark.parametrize(
    ("backend", "left"),
    [
        ("none_that_there_is", None),  # so is that of a notebook, where it is not installed
        pytest.param("module://none.of_a_user", "module://none.of_a_user", marks=pytest.mark.long),
        pytest.param("tkagg", "tkagg", marks=pytest.mark.long),
    ],
)
def test_the_users_backend_and_folders_change_no_picture(tmp_path, backend, left):
    """And the user's own figures have it afterwards."""
    path = tmp_path / "curves.png"
    env = {**os.environ, "MPLBACKEND": backend, "MPLCONFIGDIR": "/proc/none"}
    command = [sys.executable, "-c", DRAW, str(path), repr(LINES)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first == f" {backend}"
    assert left is None or last == left
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_run_ends_with_its_result_whatever_becomes_of_its_picture(tmp_path, capsys):
    """Its metrics are damaged while it trains, and a folder lies where the picture goes."""
    config = default_config()
    config.update(
        {
            "batch_size": 64,
            "worker_batch_size": 16,
            "total_steps": 4,
            "devices": 1,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {"reference_batch_size": 16, "warmup": "none"},
            "log": {"every_steps": 1, "tensorboard": False},
        }
    )
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "curves.png"

    def damage(done: int) -> bool:
        if done == 4 and not picture.exists():
            picture.mkdir()
            with metrics.open("a") as file:
                file.write("\0\0\n")
        return False

    outcome = train.run(resolve(config), tmp_path, should_stop=damage)
    (evaluation,) = monitor.evaluations(monitor.read_whole_lines(metrics)[0])
    assert outcome.complete
    assert outcome.final_error == evaluation["val_error"]
    *_, out = capsys.readouterr().out.partition("compiled in")
    lines = out.splitlines()
    assert any(line.endswith("damaged, and left out here") for line in lines)
    assert f"{picture} cannot be written (Is a directory)" in lines
    assert any(line.startswith(f"validation error {outcome.final_error:.2f}%") for line in lines)
    assert lines[-1] == f"metrics    {metrics}"
