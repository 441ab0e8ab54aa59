"""A trained network is what its checkpoint holds, wherever that lies, and runs nobody's code."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from buckets import new_bucket

import lbsgd
from lbsgd.checkpoint import store
from lbsgd.checkpoint.manifest import make_manifest
from lbsgd.main import main
from lbsgd.models.networks import build_network
from lbsgd.system.errors import ConfigError
from lbsgd.use import evaluate
from lbsgd.use.model import Model
from lbsgd.use.stored import TRAINING_SET


@pytest.fixture(scope="module")
def model(finished):
    return lbsgd.load(finished, devices=1)


def copied(finished, tmp_path, update=12) -> pathlib.Path:
    """A checkpoint alone, without the run around it."""
    return shutil.copytree(finished / "checkpoints" / str(update), tmp_path / str(update))


def rewritten(finished, tmp_path, identity=None, interface=None, arrays=None) -> pathlib.Path:
    """A sound checkpoint that says something else."""
    path = finished / "checkpoints" / "12"
    there = store.read_manifest(path)
    found = {**store.read_arrays(path, there), **(arrays or {})}
    identity = {**there.identity, **(identity or {})}
    manifest = make_manifest(12, identity, found, interface or there.interface)
    store.write(tmp_path / "12", manifest, found)
    return tmp_path / "12"


def test_importing_lbsgd_imports_no_library():
    code = "import lbsgd, sys; print({'jax', 'numpy'} & sys.modules.keys(), 'load' in dir(lbsgd))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set() True\n"


def test_it_is_the_network_of_the_run(model, finished, digits):
    assert (model.update, model.classes) == (12, tuple("0123456789"))
    assert model.classifies
    assert model.config.model.name == "cifar_resnet8"
    assert repr(model) == "<lbsgd Model cifar_resnet8: images 8x8x1, 10 classes, 12 updates>"
    error = 100.0 * np.mean(model(digits[0]).argmax(-1) != digits[1])
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert error == last["val_error"]


def test_the_module_alone_gives_the_logits_of_normalized_images(model, digits):
    """By the formula of normalisation, in numpy."""
    pixels = digits[0][:8]
    mean, std = (np.array(x, np.float32) for x in (model.interface.mean, model.interface.std))
    normalized = (pixels.astype(np.float32) / 255 - mean) / std
    logits = model(pixels)
    np.testing.assert_allclose(model(normalized), logits, rtol=0, atol=1e-5)
    apply = jax.jit(lambda variables, x: model.module.apply(variables, x, train=False))
    alone = apply(model.variables, jnp.asarray(normalized))
    np.testing.assert_allclose(alone, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("where", ["checkpoints", "checkpoints/12"])
def test_any_path_to_it_will_do(model, finished, where, digits):
    found = lbsgd.load(str(finished / where), devices=1)
    np.testing.assert_array_equal(found(digits[0][:4]), model(digits[0][:4]))


def test_a_run_in_a_bucket_is_used_there(model, finished, digits):
    bucket = new_bucket()
    for path in finished.rglob("*"):
        if path.is_file() and "evaluations" not in path.parts:
            target = bucket
            for part in path.relative_to(finished).parts:
                target = target / part
            target.write_bytes(path.read_bytes())
    found = lbsgd.load(str(bucket), "best", devices=1)
    assert found.update == lbsgd.load(finished, "best", devices=1).update
    newest = lbsgd.load(bucket / "checkpoints" / "12", devices=1)
    np.testing.assert_array_equal(newest(digits[0][:4]), model(digits[0][:4]))
    written = evaluate(str(bucket), say=lambda text: None).folder
    assert str(written).startswith(f"{bucket}/evaluations/12-raw-running-")
    assert {path.name for path in written.iterdir()} == {
        *("evaluation.json", "confusion.png", "reliability.png"),
    }


def test_a_checkpoint_alone_is_enough(model, finished, tmp_path, digits):
    found = lbsgd.load(copied(finished, tmp_path), devices=1)
    np.testing.assert_array_equal(found(digits[0][:4]), model(digits[0][:4]))
    assert found.config.data.dir == ""
    with pytest.raises(ConfigError, match=r"no.* evaluation of val_error beside it"):
        lbsgd.load(tmp_path, "best")


def test_the_average_is_that_of_the_checkpoint(finished):
    found = lbsgd.load(finished, weights="average", devices=1)
    path = finished / "checkpoints" / "12"
    arrays = store.read_arrays(path, store.read_manifest(path))
    for group, tree in found.variables.items():
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(keys, simple=True, separator="/")
            np.testing.assert_array_equal(leaf, arrays[f"ema/{group}/{name}"])


def test_the_best_of_all_evaluations_is_kept_beside_the_newest(finished):
    lines = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    errors = [(line["val_error"], -line["step"]) for line in lines if "val_error" in line]
    assert len(errors) == 3
    there = {int(path.name) for path in (finished / "checkpoints").iterdir()}
    assert there == {12, -min(errors)[1]}


@pytest.fixture(scope="module")
def three(finished, tmp_path_factory) -> pathlib.Path:
    """A workdir with checkpoints of the updates 5, 8 and 12, all of the same state."""
    workdir = tmp_path_factory.mktemp("three")
    there = store.read_manifest(finished / "checkpoints" / "12")
    arrays = store.read_arrays(finished / "checkpoints" / "12", there)
    (workdir / "checkpoints").mkdir()
    for update in (5, 8, 12):
        manifest = make_manifest(update, there.identity, arrays, there.interface)
        store.write(workdir / "checkpoints" / str(update), manifest, arrays)
    return workdir


@pytest.mark.parametrize(
    ("errors", "best", "gone"),
    [
        ({5: 30.0, 8: 20.0, 12: 25.0}, 8, ()),
        ({5: 20.0, 8: 20.0, 12: 25.0}, 8, ()),  # of equals the later
        ({3: 10.0, 5: 30.0, 12: 40.0}, 5, (3, 10)),  # 8 was not evaluated
        ({5: None, 12: 40.0}, 12, ()),  # 5 was not finite
    ],
)
@pytest.mark.parametrize("weights", ["raw", "average"])
def test_the_best_is_that_of_the_evaluations_of_what_is_there(three, errors, best, gone, weights):
    key, other = ["val_error", "val_error_ema"][:: 1 if weights == "raw" else -1]
    lines = [{"step": t, "epoch": 1.0, key: e, other: t} for t, e in errors.items()]
    (three / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    said: list[str] = []
    found = lbsgd.load(three, "best", weights=weights, devices=1, say=said.append)
    assert found.update == best
    if gone:
        with pytest.warns(UserWarning, match="the best evaluation is") as warned:
            lbsgd.load(three, "best", weights=weights, devices=1)
        assert warned[0].filename == __file__  # the line of whoever has loaded it
    keep = "keep_best=True keeps it" if weights == "raw" else "keep=N keeps more"
    assert said == [
        f"the best evaluation is that after update {update} ({key} {value}), whose checkpoint is "
        f"gone; {best} is taken, the best of those that are kept ({errors[best]:g}). In training "
        f"checkpoint.{keep}"
        for update, value in filter(None, [gone])
    ]


def in_float64(model, devices) -> Model:
    """The same network, whose weights are in float64."""
    config = ml_collections.ConfigDict(model.config.to_dict())
    config.dtype = "float64"
    with jax.enable_x64(True):
        network = build_network(config, 10, (8, 8, 1))
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), model.variables)
    return Model(network, wide, model.interface, config, model.update, devices=devices)


@pytest.mark.parametrize(
    ("devices", "size"),
    [(8, 13), *(pytest.param(d, s, marks=pytest.mark.long) for d in range(1, 9) for s in (13, 5))],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-9)])
def test_probabilities_agree_whatever_the_batch_and_the_devices(
    finished, digits, dtype, tolerance, devices, size
):
    """With those of one image at a time, on one device."""
    one, several = (lbsgd.load(finished, devices=number) for number in (1, devices))
    if dtype == "float64":
        one, several = in_float64(one, 1), in_float64(several, devices)
    pixels = digits[0][:13]
    alone = np.concatenate([one.probabilities(pixels[i : i + 1]) for i in range(13)])
    found = [several.probabilities(pixels[i : i + size]) for i in range(0, 13, size)]
    assert alone.dtype == dtype
    np.testing.assert_allclose(np.concatenate(found), alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_images(model, digits, count):
    pixels = np.resize(digits[0], (count, 8, 8, 1))
    assert model(pixels).shape == (count, 10)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((2, 9, 8, 1), np.uint8), r"images \[n, 8, 8, 1\], not \[2, 9, 8, 1\]"),
        (np.zeros((8, 8, 1), np.uint8), r"not \[8, 8, 1\]"),
        (np.zeros((2, 8, 8, 1), np.int64), "not int64"),
        (np.zeros((2, 8, 8, 1), bool), "not bool"),
    ],
)
def test_other_images_are_refused(model, images, says):
    with pytest.raises(ConfigError, match=says):
        model(images)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"checkpoint": 7}, "no checkpoint 7 in .*, only"),
        ({"checkpoint": "latest"}, "newest, best or an update index, not 'latest'"),
        ({"checkpoint": True}, "newest, best or an update index, not True"),
        ({"weights": "ema"}, "weights must be raw or average, not 'ema'"),
        ({"statistics": "exact"}, "statistics must be running or precise, not 'exact'"),
        ({"devices": 99}, "devices=99, but there are only 8"),
        ({"keys": {"model.width": 2.0}}, "model.width belongs to the training"),
        ({"keys": {"data.mean": (0.5,)}}, "data.mean is what the network was trained for"),
        ({"keys": {"data.std": (0.5,)}}, "data.std is what the network was trained for"),
        ({"keys": {"data.dri": "x"}}, "the nearest known one is 'data.dir'"),
        ({"keys": {"data.dir": 3}}, "data.dir must be str, not 3"),
        ({"statistics": "precise"}, "the run has batch_norm.precise_examples=0"),
    ],
)
def test_a_mistake_is_a_line(finished, wanted, says):
    with pytest.raises(ConfigError, match=says):
        lbsgd.load(finished, **wanted)


def test_precise_statistics_are_of_no_other_training_set(finished, tmp_path):
    path = rewritten(finished, tmp_path, identity={TRAINING_SET: "another"})
    with pytest.raises(ConfigError, match="there is another training set than the run had"):
        precisely(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", r"/none is not a folder$"),
        ("run/ful", r"/run/ful is not a folder; the nearest that is there is .*/run/full'$"),
        ("rum/full/checkpoints", r"checkpoints is not a folder; the nearest .* is .*/run'$"),
        ("x" * 300, r"x cannot be read \(File name too long\)$"),
        ("empty", "there are no checkpoints in"),
        ("notes.txt", r"notes.txt is not a folder; give the workdir of a run"),
        ("exported", r"exported is an export, and no run: train on from its weights by"),
        ("exported/lbsgd.safetensors", r"lbsgd.safetensors is an export, and no run"),
        ("mine", r"mine is a checkpoint whose folder has another name than its update index"),
    ],
)
def test_no_run_is_a_line(finished, tmp_path, capsys, name, says):
    for folder in ("empty", "run/full", "exported"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("notes.txt", "exported/interface.json", "exported/lbsgd.safetensors"):
        (tmp_path / file).touch()
    if name == "mine":
        shutil.copytree(finished / "checkpoints" / "12", tmp_path / "mine")
    with pytest.raises(ConfigError, match=says):
        lbsgd.load(tmp_path / name)
    for command, *more in (("evaluate",), ("predict", "x.png"), ("export", str(tmp_path / "out"))):
        assert main([command, str(tmp_path / name), *more]) == 2
        assert re.search(says, capsys.readouterr().err.rstrip())


def test_a_damaged_one_is_passed_over_unless_it_is_asked_for(finished, tmp_path):
    shutil.copytree(finished / "checkpoints" / "12", tmp_path / "12")
    path = tmp_path / "8"
    manifest = store.read_manifest(tmp_path / "12")
    arrays = store.read_arrays(tmp_path / "12", manifest)
    about = manifest.identity, arrays, manifest.interface
    store.write(path, make_manifest(8, *about), arrays)
    (tmp_path / "12" / "manifest" / "metadata").write_text("{}")
    said: list[str] = []
    assert lbsgd.load(tmp_path, devices=1, say=said.append).update == 8
    (line,) = said
    assert line.startswith("checkpoint 12 is passed over: its manifest does not have the checksum")
    with pytest.raises(ConfigError, match="12 is damaged: its manifest does not have the checksum"):
        lbsgd.load(tmp_path, 12)
    with pytest.raises(ConfigError, match="12 is damaged: its manifest does not have the checksum"):
        lbsgd.load(tmp_path / "12")
    (path / "manifest" / "metadata").write_text("{}")
    with pytest.raises(ConfigError, match=r"none of the 2 checkpoints in .* is good"):
        lbsgd.load(tmp_path, say=said.append)


def precisely(path) -> None:
    lbsgd.load(path, statistics="precise", keys={"batch_norm.precise_examples": 64})


@pytest.mark.parametrize(
    ("key", "used"),
    [
        ("model.name", lbsgd.load),
        ("model.roles", lbsgd.load),
        ("task.name", evaluate),
        ("task.loss", evaluate),
        ("optimizer.name", precisely),
    ],
)
def test_no_run_chooses_code(finished, tmp_path, monkeypatch, key, used):
    (tmp_path / "payload.py").write_text("open('ran', 'w').close()\ndef net(): pass\n")
    monkeypatch.chdir(tmp_path)
    path = rewritten(finished, tmp_path, identity={key: "payload:net"})
    with pytest.raises(ConfigError, match=rf"names code, {key}='payload:net', and nothing that"):
        used(path)
    assert not (tmp_path / "ran").exists()


def test_code_that_is_allowed_must_be_what_it_was(finished, tmp_path, monkeypatch):
    (tmp_path / "mynet_used.py").write_text(
        "from lbsgd.models.networks import build_model\n"
        "def net(num_classes):\n"
        "    return build_model('cifar_resnet8', width=0.25, num_classes=num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = {"mynet_used:net": "0" * 12}
    path = rewritten(finished, tmp_path, {"model.name": "mynet_used:net", "code": code})
    with pytest.raises(ConfigError, match="is no longer what the run was trained with"):
        lbsgd.load(path, allow_code=True)
    own, found = (
        lbsgd.load(where, devices=1, allow_code=True, keys={"code_may_differ": True})
        for where in (finished, path)
    )
    pixels = np.zeros((1, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(found(pixels), own(pixels))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"identity": {"model.width": 0.5}}, "is not of the network that it describes"),
        ({"identity": {"model.depth": 3}}, "unknown config key 'model.depth'"),
        ({"identity": {"model.name": 3}}, "model.name must be str, not 3"),
        ({"interface": {"classes": []}}, "does not say what images its network takes"),
        (
            {"arrays": {"params/classifier/bias": np.zeros(11, np.float32)}},
            "params/classifier/bias is float32.11. there, float32.10. here",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_a_line(finished, tmp_path, changed, says):
    with pytest.raises(ConfigError, match=says):
        lbsgd.load(rewritten(finished, tmp_path, **changed))
