"""An evaluation is the run's own again, bit by bit; and on other data what a loop finds."""

import functools
import hashlib
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_config

import lbsgd
from lbsgd import train
from lbsgd.main import main
from lbsgd.system.errors import ConfigError
from lbsgd.tasks.classification import classification
from lbsgd.use import evaluate
from lbsgd.use.evaluate_command import MOST_SHOWN, _class_lines
from lbsgd.use.evaluation import Evaluated, _predict
from lbsgd.use.tally import NO_CLASS, Tally


def contents(folder: pathlib.Path) -> dict[str, str]:
    """The files of a run that are not evaluations."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if "evaluations" not in path.parts
    }


def last_evaluation(workdir: pathlib.Path, update: int, ending: str = "") -> dict[str, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    (line,) = (line for line in lines if line["step"] == update and "val_loss" in line)
    names = ("loss", "error", "error_top5")
    return {name: line[f"val_{name}{ending}"] for name in names}


def silent(text: str) -> None:
    pass


def test_it_is_the_run_s_own_bit_by_bit(finished):
    """On as many devices as that, and no file of the run is another afterwards."""
    before, folders = contents(finished), set()
    for weights, ending in (("raw", ""), ("average", "_ema")):
        found = evaluate(finished, weights=weights, say=silent)
        assert found.metrics == last_evaluation(finished, 12, ending)
        assert (found.examples, found.about["devices"]) == (360, 2)
        assert found.about["dataset"]["own_validation_set"]
        folders.add(found.folder)
    assert len(folders) == 2
    assert contents(finished) == before


@pytest.mark.long
@pytest.mark.parametrize(
    "keys",
    [
        {"batch_norm.precise_examples": 128},
        {"accumulation_steps": 2, "devices": 1},
        {"evaluation.batch_size": 100},
        {"batch_norm.synced_workers": 4, "devices": 4},
        {"dtype": "float64"},
        {"dtype": "bfloat16", "devices": 8},
        {"accumulation_steps": 0, "device_memory_gib": 0.002},
        {"data.train_examples": 700, "data.left_out": "validation"},
    ],
)
def test_it_is_the_run_s_own_however_that_was_placed(tmp_path, keys):
    train.run(tiny_config(**keys), tmp_path / "x", shown=False)
    assert evaluate(tmp_path / "x", say=silent).metrics == last_evaluation(tmp_path / "x", 12)


def test_what_is_written_is_what_is_found(finished, tmp_path):
    """Of each class, too: the same errors as the task's own."""
    found = evaluate(finished, out=tmp_path / "out", say=silent)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(found.to_json()))
    for name in ("confusion.png", "reliability.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    confusion = np.array(written["confusion"])
    assert confusion.sum() == 360
    assert 100.0 * (1 - np.trace(confusion) / 360) == pytest.approx(written["metrics"]["error"])
    right = sum(row["right"] for row in written["by_class"])
    assert (right, len(written["by_class"])) == (np.trace(confusion), 10)
    assert written["evaluated"]["checkpoint"] == str(finished / "checkpoints" / "12")


def test_a_folder_of_some_classes_is_matched_by_name(finished, files):
    """Held against predictions of the same files one after the other."""
    keys = {"data.source": "folder", "data.dir": str(files)}
    found = evaluate(finished, keys=keys, say=silent)
    paths = sorted(files.glob("*/*.png"))
    predicted = lbsgd.load(finished, devices=2).predict(paths, 10)
    by_name = [{p.name: p.probability for p in each} for each in predicted]
    probability = [of[path.parent.name] for of, path in zip(by_name, paths)]
    loss = -np.mean(np.log(probability))
    wrong = np.mean([each[0].name != path.parent.name for path, each in zip(paths, predicted)])
    assert found.examples == len(paths) == 4 + 7 + 11
    # Each probability is right to 1e-6 of about 0.1.
    assert found.metrics["loss"] == pytest.approx(loss, abs=1e-4)
    assert found.metrics["error"] == pytest.approx(100 * wrong)
    assert {row["class"] for row in found.to_json()["by_class"]} == {"0", "3", "7"}
    tally = Tally(10)
    right = [each[0].name == path.parent.name for path, each in zip(paths, predicted)]
    sure = [each[0].probability for each in predicted]
    tally.add(np.zeros(len(right), int), 1 - np.array(right, int), np.array(sure))
    assert found.tally.ece == pytest.approx(tally.ece, abs=1e-4)
    assert not found.about["dataset"]["own_validation_set"]


def test_a_flip_averages_the_probabilities_of_image_and_mirror_image(finished, files, capsys):
    keys = {"data.source": "folder", "data.dir": str(files)}
    found = evaluate(finished, flip=True, keys=keys, say=silent)
    paths = sorted(files.glob("*/*.png"))
    model = lbsgd.load(finished, devices=2)
    pixels = np.stack([np.asarray(Image.open(path))[..., None] for path in paths])
    mean = (model.probabilities(pixels) + model.probabilities(pixels[:, :, ::-1])) / 2
    of_label = mean[np.arange(len(paths)), [int(path.parent.name) for path in paths]]
    # Each probability is right to 1e-6 of about 0.1.
    assert found.metrics["loss"] == pytest.approx(-np.mean(np.log(of_label)), abs=1e-4)
    flipped = model.probabilities(pixels, flip=True)
    np.testing.assert_allclose(flipped, mean, rtol=0, atol=1e-6)
    predicted = model.predict(paths, 1, flip=True)
    assert [each[0].label for each in predicted] == flipped.argmax(-1).tolist()
    assert "-flip-" in found.folder.name  # not in the place of what was not flipped
    # The commands have it too.
    words = ["--flip", "--json", "--config.devices=2"]
    of_data = [f"--config.{key}={value}" for key, value in keys.items()]
    assert main(["evaluate", str(finished), *words, *of_data]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == found.metrics
    assert main(["predict", str(finished), str(paths[0]), *words, "--top=1"]) == 0
    (by_command,) = json.loads(capsys.readouterr().out)["predictions"]
    assert by_command["probability"] == pytest.approx(flipped[0].max(), abs=1e-6)


def test_outputs_that_are_no_numbers_are_of_no_class():
    logits = np.array([[0.0, np.nan, 1.0], [0.0, 2.0, 2.0]], np.float32)
    network = {
        "network": lambda params, stats, images: jnp.asarray(logits),
        "preprocess": lambda x: x,
    }
    predict = jax.jit(functools.partial(_predict, **network))
    predicted, confidence = predict(None, None, np.zeros((1, 2, 8, 8, 1), np.float32))
    assert predicted.tolist() == [NO_CLASS, 1]  # of equals the lower
    assert confidence[1] == pytest.approx(np.e**2 / (1 + 2 * np.e**2))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"data.dir": "/x"}, "data.dir='/x' has no effect: it is used only with data.source="),
        ({"data.source": "folder", "data.dir": "/nowhere"}, "data.dir='/nowhere' is not a folder"),
        ({"data.source": "synthetic"}, "have 3 channels, and the network takes 1"),
        ({"data.source": "nothing"}, "unknown data.source 'nothing'"),
    ],
)
def test_a_mistake_is_a_line(finished, keys, says):
    with pytest.raises(ConfigError, match=says):
        evaluate(finished, keys=keys, say=silent)


def test_a_class_that_the_network_does_not_have_is_a_line(finished, files, tmp_path):
    shutil.copytree(files, tmp_path / "set")
    shutil.copytree(files / "7", tmp_path / "set" / "banana")
    keys = {"data.source": "folder", "data.dir": str(tmp_path / "set")}
    with pytest.raises(ConfigError, match="a class 'banana', which the network does not have"):
        evaluate(finished, keys=keys, say=silent)


def test_the_command_prints_it(finished, capsys, tmp_path):
    words = ["evaluate", str(finished), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    last = last_evaluation(finished, 12)
    assert out[0] == "update 12, raw weights, running statistics, on 360 examples of digits:"
    assert out[1] == (
        f"loss {last['loss']:.4f}  error {last['error']:.2f}%  top-5 {last['error_top5']:.2f}%"
    )
    right = round(3.6 * (100 - last["error"]))
    assert out[2] == f"accuracy {right / 3.6:.2f}% ({right} of 360 examples)"
    files = "evaluation.json, confusion.png, reliability.png"
    assert out[-1] == f"written to {tmp_path / 'out'}: {files}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files.split(", "))
    assert len(out) == 2 + 1 + 1 + 10 + 2
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == last
    assert main([*words, "--config.data.dir=/nowhere", "--config.data.source", "folder"]) == 2
    assert capsys.readouterr().err.startswith("lbsgd: data.dir='/nowhere' is not a folder")


def test_of_many_classes_the_least_accurate_are_printed(tmp_path):
    """Class i has i of 30 right."""
    tally, classes = Tally(30), tuple(f"class {i:02}" for i in range(30))
    for label in range(30):
        predicted = np.where(np.arange(30) < label, label, (label + 1) % 30)
        tally.add(np.full(30, label), predicted, np.full(30, 0.5))
    found = Evaluated({}, 900, {}, tally, classification(30), classes, tmp_path)
    first, _, *rows = _class_lines(found)
    assert first == f"the {MOST_SHOWN} least accurate of 30 classes:"
    assert [row[:8] for row in rows] == list(classes[:MOST_SHOWN])
    assert rows[15].split() == ["class", "15", "30", "50.00%", "class", "16", "(15)"]


@pytest.mark.long
def test_a_task_of_one_s_own_is_evaluated_by_its_own_numbers(tmp_path, monkeypatch):
    """Where that is allowed; and predict says what it cannot."""
    (tmp_path / "mytask_used.py").write_text(
        "import dataclasses\n"
        "from lbsgd.tasks.classification import classification\n"
        "def task(classes):\n"
        "    return dataclasses.replace(classification(classes), headline='loss')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    train.run(tiny_config(**{"task.name": "mytask_used:task"}), tmp_path / "x", shown=False)
    with pytest.raises(ConfigError, match=r"names code, task\.name='mytask_used:task'"):
        evaluate(tmp_path / "x", say=silent)
    found = evaluate(tmp_path / "x", "best", allow_code=True, say=silent)
    assert found.metrics == last_evaluation(tmp_path / "x", found.about["update"])
    assert found.tally is None
    model = lbsgd.load(tmp_path / "x")
    assert model(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)
    with pytest.raises(ConfigError, match="predict needs a classification"):
        model.predict([np.zeros((8, 8, 1), np.uint8)])
