"""The curves of a run, and that no run fails of them."""

import itertools
import os
import subprocess
import sys

import pytest

from lbsgd import train
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.record import curves, result
from lbsgd.run.record.metrics import evaluations, read_whole_lines
from lbsgd.tasks.classification import classification


def panels(figure) -> dict[str, list]:
    """The lines of each panel, by its label."""
    return {panel.get_ylabel(): panel.get_lines() for panel in figure.axes}


def points(line) -> list[tuple[float, float]]:
    return list(zip(line.get_xdata().tolist(), line.get_ydata().tolist()))


FLAT = curves.Schedule([0.0, 3.0], [0.1], [64])
TASK = classification(10)


def test_training_error_is_averaged_between_evaluations():
    lines = [
        {"epoch": 0.5, "train_error": 80.0},
        {"epoch": 1.0, "train_error": 60.0},
        {"epoch": 1.0, "val_error": 50.0},
        {"epoch": 2.0, "train_error": 40.0},
        {"epoch": 2.0, "val_error": 30.0},
        {"epoch": 2.5, "train_error": 20.0},
    ]
    training, validation = panels(curves.curves(lines, "x", FLAT, TASK))["error %"]
    assert points(training) == [(1.0, 70.0), (2.0, 40.0), (2.5, 20.0)]
    assert points(validation) == [(1.0, 50.0), (2.0, 30.0)]
    assert training.get_label() == "training, 20.00% at the end"
    assert validation.get_label() == "validation, 30.00% at the end"


def test_one_evaluation_is_a_point_and_training_a_curve():
    """Averaged over twentieths of the run."""
    lines = [{"epoch": i / 40, "train_error": float(i)} for i in range(1, 41)]
    lines.append({"epoch": 1.0, "val_error": 30.0})
    training, validation = panels(curves.curves(lines, "x", FLAT, TASK))["error %"]
    assert points(validation) == [(1.0, 30.0)]
    assert validation.get_marker() == "o"
    expected = [(i / 20, 2 * i - 0.5) for i in range(1, 21)]
    assert points(training) == pytest.approx([pytest.approx(pair) for pair in expected])


@pytest.mark.parametrize("logged", [0, 1])
def test_a_run_of_few_logged_updates_has_what_there_is(logged):
    updates = [{"epoch": 0.5, "train_error": 40.0}] * logged
    lines = [*updates, {"epoch": 1.0, "val_error": 30.0}]
    found = panels(curves.curves(lines, "x", FLAT, TASK))["error %"]
    assert [points(line) for line in found] == [[(0.5, 40.0)]] * logged + [[(1.0, 30.0)]]
    assert {line.get_marker() for line in found} == {"o"}


@pytest.mark.parametrize(
    ("errors", "scale", "ticks"),
    [
        ((90.0, 5.0, 0.56), "log", {"0.5", "1", "10", "100"}),
        ((90.0, 5.0, 0.28, 0.0), "symlog", {"0", "0.5", "1", "10", "100"}),
        ((80.0, 30.0, 24.1), "log", {"20", "25", "30", "40", "80", "100"}),
        ((0.0, 0.0), "linear", {"0.0", "1.0"}),
    ],
)
def test_errors_at_the_end_can_be_read(errors, scale, ticks):
    lines = [{"epoch": float(i), "val_error": error} for i, error in enumerate(errors)]
    figure = curves.curves(lines, "x", FLAT, TASK)
    figure.draw_without_rendering()
    panel = figure.axes[0]
    assert panel.get_yscale() == scale
    low, high = panel.get_ylim()
    assert low <= min(errors)
    assert max(errors) <= high
    shown = [label for label in panel.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert ticks <= {label.get_text() for label in shown}
    # Neighbours are apart enough to be read: labels are about 12 pixels high.
    heights = panel.transData.transform([(0, label.get_position()[1]) for label in shown])[:, 1]
    assert all(b - a > 10 for a, b in itertools.pairwise(heights))


def test_curves_have_the_batch_size_where_it_changes():
    evaluation = {"epoch": 1.0, "val_error": 5.0}
    figure = curves.curves([evaluation], "x", FLAT, TASK)
    assert panels(figure).keys() == {"error %", "learning rate"}
    grown = curves.Schedule([0.0, 1.0, 2.5], [0.1, 0.1], [64, 128])
    figure = curves.curves([evaluation], "x", grown, TASK)
    (line,) = panels(figure)["batch size"]
    assert points(line) == [(0.0, 64), (1.0, 128), (2.5, 128)]
    assert line.get_drawstyle() == "steps-post"
    assert [panel.get_xlabel() for panel in figure.axes] == ["", "", "epochs"]


# Of digits, 1,437 examples: keys, updates that are done, and what each update's rate was.
SCHEDULES = {
    "steps": (
        {"learning_rate.decay_epochs": (2.0, 3.0), "learning_rate.warmup": "none"},
        40,
        lambda t: 0.4 * 0.1 ** ((t >= 22) + (t >= 34)),
    ),
    "a warmup": (
        {"learning_rate.warmup_epochs": 1.0, "learning_rate.decay": "none"},
        20,
        lambda t: min(0.1 + 0.3 * t / 11, 0.4),
    ),
    "constant": ({"learning_rate.warmup": "none", "learning_rate.decay": "none"}, 7, lambda t: 0.4),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("drawn", [4000, 5])
def test_the_schedule_is_drawn_as_it_was(monkeypatch, name, drawn):
    """A decay in steps drops at its update, however few points are drawn."""
    keys, done, rate = SCHEDULES[name]
    monkeypatch.setattr(result, "DRAWN", drawn)
    config = default_config()
    config.update({"batch_size": 128, "total_steps": 60, "devices": 1})
    config.update(
        {"model": {"name": "cifar_resnet8"}, "learning_rate": {"reference_batch_size": 32}}
    )
    config.update_from_flattened_dict(keys)
    schedule = result._schedule(build(resolve(config)).plan, done)
    figure = curves.curves([], "x", schedule, TASK)
    (line,) = panels(figure)["learning rate"]
    assert line.get_drawstyle() == "steps-post"
    updates = [round(epoch * 1437 / 128) for epoch, _ in points(line)]
    assert (updates[0], updates[-1]) == (0, done)
    for t, (epoch, level) in zip(updates[:-1], points(line)):
        assert epoch == t * 128 / 1437
        assert level == pytest.approx(rate(t), rel=1e-6)
    if drawn > done:
        assert updates == list(range(done + 1))
    if name == "steps":
        assert {22, 34} <= set(updates)


LINES = [
    {"step": 1, "epoch": 0.5, "train_error": 80.0, "learning_rate": 0.1},
    {"step": 2, "epoch": 1.0, "val_error": 50.0},
]


def test_a_picture_is_drawn(tmp_path):
    assert curves.draw(LINES, tmp_path / "curves.png", "title", FLAT, TASK) == ""
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_a_line_that_says_why(tmp_path):
    folder = tmp_path / "curves.png"
    folder.mkdir()
    undrawn = curves.draw(LINES, folder, "x", FLAT, TASK)
    assert undrawn == f"{folder} cannot be written (Is a directory)"
    full = tmp_path / "full.png"
    full.symlink_to("/dev/full")
    undrawn = curves.draw(LINES, full, "x", FLAT, TASK)
    assert undrawn == f"{full} cannot be written (No space left on device)"
    path = tmp_path / "x.png"
    why = f"{path} cannot be drawn (KeyError: 'epoch')"
    assert curves.draw([{"train_error": 1.0}], path, "x", FLAT, TASK) == why


DRAW = """
import os, pathlib, sys
from lbsgd.run.record import curves
from lbsgd.tasks.classification import classification
flat = curves.Schedule([0, 1], [0.1], [64])
lines, path = eval(sys.argv[2]), pathlib.Path(sys.argv[1])
problem = curves.draw(lines, path, "x", flat, classification(10))
print(problem, os.environ["MPLBACKEND"])
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


@pytest.mark.long
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
            "log": {"every_steps": 1, "sinks": ()},
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
    (evaluation,) = evaluations(read_whole_lines(metrics)[0])
    assert outcome.complete
    assert outcome.final == evaluation["val_error"]
    *_, out = capsys.readouterr().out.partition("compiled in")
    lines = out.splitlines()
    assert any(line.endswith("damaged, and left out here") for line in lines)
    assert f"{picture} cannot be written (Is a directory)" in lines
    assert any(line.startswith(f"validation error {outcome.final:.2f}%") for line in lines)
    assert lines[-1] == f"metrics    {metrics}"
