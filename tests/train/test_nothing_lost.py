"""What fails beside the training loses nothing of it, and the same command resumes."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lbsgd import train
from lbsgd.checkpoint import store
from lbsgd.run.config import default_config, resolve
from lbsgd.run.evaluation import Evaluation
from lbsgd.run.program import Program
from lbsgd.run.record.metrics import evaluations, read_metrics
from lbsgd.run.record.record import Record
from lbsgd.system.errors import ConfigError, DivergedError

UPDATES = 6


def images(folder: pathlib.Path) -> pathlib.Path:
    """Two classes of ten images to train on and four to evaluate on."""
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    return folder


def config_of(folder: pathlib.Path, **keys: object):
    config = default_config()
    config.update(
        {
            "batch_size": 8,
            "worker_batch_size": 4,
            "total_steps": UPDATES,
            "devices": 1,
            "model": {"name": "cifar_resnet8", "width": 0.125},
            "learning_rate": {"warmup": "none", "decay": "none"},
            "data": {"source": "folder", "dir": str(folder)},
            "log": {"every_steps": 1, "sinks": ()},
        }
    )
    config.update_from_flattened_dict(keys)
    return resolve(config)


def saved(workdir: pathlib.Path) -> list[int]:
    """Updates of which there is a checkpoint that verifies."""
    folder = workdir / "checkpoints"
    updates = store.updates_in(folder)
    for update in updates:
        store.read_arrays(folder / str(update), store.read_manifest(folder / str(update)))
    return updates


def evaluated(workdir: pathlib.Path) -> list[int]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return [line["step"] for line in evaluations(lines)]


def updates_in_metrics(workdir: pathlib.Path) -> list[int]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return [line["step"] for line in lines if "train_loss" in line]


def cut_short(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:60])  # its header is whole


# How an image is lost, and what the run says of it.
LOSSES = {
    "cut short": (cut_short, "5.png is corrupt"),
    "gone": (pathlib.Path.unlink, r"cannot be read \(No such file or directory\)"),
    "another size": (
        lambda file: Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(file),
        "an image is 9x8x3, the first one 8x8x3",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
def test_an_evaluation_that_fails_at_the_end_loses_nothing(tmp_path, monkeypatch, capsys, loss):
    """An image is lost while the run trains; once it is there again the same command evaluates."""
    config, workdir = config_of(images(tmp_path / "images")), tmp_path / "run"
    file = tmp_path / "images/val/dog/3.png"
    lose, says = LOSSES[loss]
    whole = file.read_bytes()

    def lose_it(done: int) -> bool:
        if done == 2 and file.exists() and file.read_bytes() == whole:
            lose(file)
        return False

    says = says.replace("5.png", "dog/3.png")
    told = rf"{says}.*; update 6 is saved: once that is mended, the same command evaluates it"
    with pytest.raises(ConfigError, match=told):
        train.run(config, workdir, should_stop=lose_it)
    assert saved(workdir) == [UPDATES]
    assert evaluated(workdir) == []
    file.write_bytes(whole)
    outcome = train.run(config, workdir)
    assert outcome.complete
    assert evaluated(workdir) == [UPDATES]
    assert "compiled" not in capsys.readouterr().out.partition("resumes after update 6")[2]


@pytest.mark.long
def test_an_image_that_was_mended_need_not_be_the_one_it_was(tmp_path, capsys):
    """The validation set is then another, but the training is the same, and was not evaluated."""
    folder, workdir = images(tmp_path / "images"), tmp_path / "run"
    file = folder / "val/dog/3.png"
    whole = file.read_bytes()
    cut_short(file)
    with pytest.raises(ConfigError, match="update 6 is saved"):
        train.run(config_of(folder), workdir)
    file.write_bytes(whole)
    assert train.run(config_of(folder), workdir).complete
    assert "compare" not in capsys.readouterr().out


@pytest.mark.long
def test_an_evaluation_that_fails_on_the_way_loses_nothing(tmp_path):
    """Though no checkpoint was due; what was trained before is not trained again."""
    folder, workdir = images(tmp_path / "images"), tmp_path / "run"
    keys = {"evaluation.every_steps": 4, "checkpoint.every_minutes": 0.0}
    cut_short(folder / "val/cat/1.png")
    with pytest.raises(ConfigError, match=r"update 4 is saved: .* evaluates it and resumes"):
        train.run(config_of(folder, **keys), workdir)
    assert saved(workdir) == [4]
    config = config_of(folder, **keys, **{"data.on_corrupt": "skip"})
    assert train.run(config, workdir).complete
    assert evaluated(workdir) == [4, 6]
    assert updates_in_metrics(workdir) == [1, 2, 3, 4, 5, 6]


def test_where_both_are_due_the_checkpoint_comes_first(tmp_path, monkeypatch):
    folder, workdir = images(tmp_path / "images"), tmp_path / "run"
    keys = {"evaluation.every_steps": 2, "checkpoint.every_steps": 2}
    events = []
    for kind, name in ((Record, "save"), (Evaluation, "__call__")):
        plain = getattr(kind, name)

        def spy(self, done, *args, name=name, plain=plain):
            events.append((done, name))
            return plain(self, done, *args)

        monkeypatch.setattr(kind, name, spy)
    train.run(config_of(folder, **keys), workdir)
    assert events == [(done, name) for done in (2, 4, 6) for name in ("save", "__call__")]
    assert saved(workdir) == [6, 4, 2]


@pytest.mark.long
def test_a_training_image_that_is_lost_loses_no_update(tmp_path):
    folder, workdir = images(tmp_path / "images"), tmp_path / "run"
    shutil.copytree(folder, tmp_path / "kept")
    config = config_of(folder, **{"data.on_corrupt": "error"})

    def lose_them(done: int) -> bool:
        if done == 1:
            for file in (folder / "train").glob("*/*.png"):
                file.unlink()
        return False

    with pytest.raises(ConfigError, match=r"saved: once that is mended, the same command resumes"):
        train.run(config, workdir, should_stop=lose_them)
    (update,) = saved(workdir)
    assert update >= 1
    shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)
    assert train.run(config, workdir).complete
    assert updates_in_metrics(workdir) == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_what_diverged_is_not_saved(tmp_path):
    """Though a diagnostic, which waits for all updates, is the first to learn of it."""
    keys = {"learning_rate.reference_learning_rate": 1e15, "checkpoint.every_minutes": 0.0}
    keys |= {"diagnostics.confusion.every_steps": 3, "diagnostics.confusion.pairs": 1}
    keys |= {"diagnostics.confusion.batch_size": 4, "total_steps": 0, "total_epochs": 10.0}
    folder, workdir = images(tmp_path / "images"), tmp_path / "run"
    with pytest.raises(DivergedError, match="is not finite"):
        train.run(config_of(folder, **keys), workdir)
    assert saved(workdir) == []


def run_out(*_: object) -> jax.Array:
    """A computation that XLA has no memory for: a million TiB."""
    return jax.jit(lambda: jnp.ones(2**60, jnp.int8) + jnp.int8(1))()


@pytest.mark.long
def test_an_evaluation_without_memory_loses_nothing(tmp_path, monkeypatch):
    folder, workdir = images(tmp_path / "images"), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Program, "eval_step", lambda run: run_out)
        says = r"evaluation needs more memory than there is.*; set evaluation.batch_size to less "
        says += r"than 8; update 6 is saved: once that is mended"
        with pytest.raises(ConfigError, match=says):
            train.run(config_of(folder), workdir)
    assert saved(workdir) == [UPDATES]
    assert train.run(config_of(folder, **{"evaluation.batch_size": 4}), workdir).complete


@pytest.mark.parametrize(
    ("keys", "says"),
    [({}, "set accumulation_steps to more than 1, or to 0"), ({"accumulation_steps": 2}, "lower")],
)
def test_a_step_without_memory_is_a_line(tmp_path, monkeypatch, keys, says):
    folder = images(tmp_path / "images")
    for compiled in (lambda *_: run_out, run_out):  # when it runs, or when it is compiled
        monkeypatch.setattr(Program, "compile_train_step", compiled)
        with pytest.raises(
            ConfigError, match=rf"training needs more memory than there is.*; {says}"
        ):
            train.run(config_of(folder, **keys), tmp_path / "run")
