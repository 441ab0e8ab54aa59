"""`lbsgd export`: the folder that it leaves, its model card, and mistakes as one line."""

import importlib.util
import json
import pathlib
import re
import shutil
import socket

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_config

from lbsgd import train
from lbsgd.checkpoint import store
from lbsgd.checkpoint.manifest import make_manifest
from lbsgd.main import main
from lbsgd.run.workdir import Workdir
from lbsgd.use.export import exporting
from lbsgd.use.export.card import _public, model_card
from lbsgd.use.loading import Wanted, load_stored
from lbsgd.weights.keys import IDENTITY

LONG = pytest.mark.long
NAMES = [f"kind {i}" for i in range(10)]
HIDDEN = "hidden-folder"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A run on images in a folder whose name nobody is to see, with averaged weights."""
    folder = tmp_path_factory.mktemp(HIDDEN)
    random = np.random.default_rng(0)
    for split, count in (("train", 19), ("val", 4)):
        for name in NAMES:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    config = tiny_config(
        **{"data.source": "folder", "data.dir": str(folder), "total_steps": 4, "ema.decay": 0.5},
        **{"evaluation.every_steps": 2, "checkpoint.every_steps": 2},
    )
    train.run(config, str(folder / "run"))
    return folder / "run"


def exported(capsys, *argv) -> tuple[int, str, str]:
    code = main(["export", *map(str, argv)])
    return code, *capsys.readouterr()


def test_a_folder_with_all_that_the_network_allows(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    code, said, complaints = exported(capsys, run, out, "--license", "CC0-1.0")
    assert code == 0
    assert complaints.startswith("lbsgd: without torchvision: torchvision has no such network")
    assert complaints.count("\n") == 1
    assert "checked on 8 images of the validation data" in said
    files = ["flax_model.msgpack", "lbsgd.safetensors", "model.stablehlo"]
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        *files[:1],
        "interface.json",
        *files[1:],
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing is left beside it
    interface = json.loads((out / "interface.json").read_text())
    assert interface["classes"] == NAMES
    _check_card(run, (out / "README.md").read_text(), files)
    _check_says_no_path(run, out)
    _check_snippets(out, (out / "README.md").read_text(), monkeypatch)


def _check_card(run, card, files):
    assert card.startswith("# cifar_resnet8 trained on a folder of images\n")
    assert card.endswith("## Licence\n\nCC0-1.0\n")
    for file in files:
        assert f"| `{file}` |" in card
    result = json.loads((run / "result.json").read_text())
    final = result["metrics"]["val_error"]["final"]
    assert f"validation error {final:.4g}% after 4 updates, the median of its 2 last" in card
    last = [line for line in metrics_of(run) if "val_error" in line][-1]
    said = ", ".join(f"{n} {last[f'val_{n}']:.4g}" for n in ("loss", "error", "error_top5"))
    assert f"- These weights, on the validation set: {said}.\n" in card
    assert "n = 1" in card
    assert "190 training examples, 40 validation examples" in card
    assert "4 updates of minibatches of 64 = 4 workers of 16" in card
    assert "\ntotal_steps = 4\n" in card


def _check_snippets(out, card, monkeypatch):
    """The code of the card runs, in the folder, with images at hand."""
    monkeypatch.chdir(out)
    images = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), np.uint8)
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(snippets) == 2
    found = {}
    for snippet in snippets:
        exec(snippet, {"images": images}, found)
    (command,) = re.findall(r"```sh\n(.*?)```", card, flags=re.DOTALL)
    assert command.replace("\\\n", "").split() == [
        *("lbsgd", "train", "--config", "CONFIG", "--config.init_from=lbsgd.safetensors"),
        *("--config.model.name=cifar_resnet8", "--config.model.width=0.25"),
    ]
    assert found["variables"].keys() == {"params", "batch_stats"}
    assert found["found"]["probabilities"].shape == (3, len(NAMES))
    np.testing.assert_allclose(found["logits"], found["found"]["logits"], rtol=0, atol=1e-4)


def _check_says_no_path(run, out):
    own = [HIDDEN, str(pathlib.Path.home()), socket.gethostname()]
    own += [str(pathlib.Path(exporting.__file__).parents[3])]
    for path in out.iterdir():
        content = path.read_bytes()
        for word in own:
            assert len(word) < 5 or word.encode() not in content, (path.name, word)


def test_a_best_checkpoint_is_the_best_of_those_that_are_kept(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    lines = [{"step": t, "epoch": 0.1, "val_error": e} for t, e in ((1, 5.0), (2, 8.5), (4, 9.0))]
    (tmp_path / "run/metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    argv = ["--format=flax", "--checkpoint=best"]
    code, _, complaints = exported(capsys, tmp_path / "run", tmp_path / "out", *argv)
    assert (code, complaints.count("\n")) == (0, 1)
    assert "the best evaluation is that after update 1 (val_error 5), whose" in complaints
    card = (tmp_path / "out/README.md").read_text()
    assert (
        "- This checkpoint was chosen because its evaluation on the validation set (error 8.5) was "
        "the best of those whose checkpoints are kept, so that evaluation is too good as an "
        "estimate. The best of all was 5, after update 1.\n" in card
    )


def test_the_card_names_the_weights_that_the_run_began_with(run, tmp_path):
    """Names the file where the workdir is there, and gives the fingerprint always."""
    workdir = Workdir(tmp_path / "run")
    there = store.read_manifest(run / "checkpoints" / "4")
    arrays = store.read_arrays(run / "checkpoints" / "4", there)
    workdir.checkpoints.mkdir(parents=True)
    identity = {**there.identity, IDENTITY: "0123456789abcdef"}
    store.write(
        workdir.checkpoints / "4", make_manifest(4, identity, arrays, there.interface), arrays
    )
    for given, said in (
        (f"/data/{HIDDEN}/r18.{{seed}}.msgpack", "`r18.0.msgpack`"),
        ("runs/pretraining", "`runs/pretraining`"),
        (None, "other weights"),
    ):
        if given:
            workdir.config.write_text(json.dumps({"config": {"init_from": given}}))
        else:
            workdir.config.unlink()
        stored, model = load_stored(workdir.path, Wanted(devices=1), pytest.fail)
        card = model_card(stored, model, Wanted(), None, [], "nothing", "")
        assert card.startswith("# cifar_resnet8 fine-tuned on a folder of images\n"), card
        assert (
            f"\n- Fine-tuned from {said} (`init_from`), fingerprint `0123456789abcdef`.\n" in card
        )
        assert HIDDEN not in card


@LONG
def test_onnx_averaged_weights_and_the_best_checkpoint(run, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    argv = ["--format", "onnx,safetensors", "--weights", "average", "--checkpoint", "best"]
    code, said, complaints = exported(capsys, run, tmp_path / "out", *argv)
    assert (code, complaints) == (0, "")
    assert said.count(", rounding explains") == 2
    card = (tmp_path / "out/README.md").read_text()
    assert "(the moving average of the weights)" in card
    assert re.search(r"because its evaluation on the validation set \(error_ema .*best, so", card)
    assert "## Licence\n\nnot stated by the author\n" in card


def test_averaged_weights_have_their_own_results_and_other_data_are_not_the_run_s(
    run, tmp_path, capsys
):
    for split in ("train", "val"):
        shutil.copytree(run.parent / "val", tmp_path / "other" / split)
    argv = ["--format=flax", "--weights=average", f"--config.data.dir={tmp_path / 'other'}"]
    code, _, complaints = exported(capsys, run, tmp_path / "out", *argv)
    assert (code, complaints) == (0, "")
    card = (tmp_path / "out" / "README.md").read_text()
    final = json.loads((run / "result.json").read_text())["metrics"]["val_error_ema"]["final"]
    assert f"validation error {final:.4g}% after 4 updates" in card
    (last,) = (line for line in metrics_of(run) if line["step"] == 4 and "val_error" in line)
    names = ("loss", "error", "error_top5")
    said = ", ".join(f"{name} {last[f'val_{name}_ema']:.4g}" for name in names)
    assert f"- These weights, on the validation set: {said}.\n" in card
    assert "(the moving average of the weights)" in card
    assert "training examples" not in card


def metrics_of(run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_without_data_it_is_checked_on_generated_images(run, tmp_path, capsys):
    """And of a run that was copied as a single checkpoint."""
    alone = tmp_path / "4"
    shutil.copytree(run / "checkpoints" / "4", alone)
    argv = [alone, tmp_path / "out", "--format", "flax"]
    code, said, complaints = exported(capsys, *argv)
    assert (code, complaints.count("\n")) == (0, 1)
    assert complaints.startswith("lbsgd: without the data of the run: ")
    assert "checked on generated images only" in said
    card = (tmp_path / "out/README.md").read_text()
    assert "compared with the network's on generated images only" in card
    assert "Nothing was recorded beside the checkpoint" in card


def test_a_check_that_fails_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    kind = exporting.FORMATS["flax"]

    def write_damaged(model, path, options):
        kind.write(model, path, options)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x40
        path.write_bytes(content)

    damaged = {**exporting.FORMATS, "flax": kind._replace(write=write_damaged)}
    monkeypatch.setattr(exporting, "FORMATS", damaged)
    code, _, complaints = exported(capsys, run, tmp_path / "out", "--format", "flax")
    assert (code, complaints.count("\n")) == (1, 1)
    assert complaints.startswith("lbsgd: flax_model.msgpack")
    assert complaints.endswith("; nothing was exported\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--format", "pickle"], "'pickle' is none of torchvision, flax, safetensors"),
        (["--format", "torchvision"], "--format torchvision: torchvision has no such network"),
        (["--platforms", "cpu,abacus"], "'abacus' is none of cpu, cuda, rocm, tpu"),
        (["--checkpoint", "3"], "there is no checkpoint 3"),
        (["--format=flax", "--images", "/nowhere.png"], "/nowhere.png: cannot be read"),
        (["--format", "stablehlo", "--platforms", "tpu"], "--platforms must hold cpu"),
    ],
)
def test_a_mistake_is_a_line(argv, said, run, tmp_path, capsys):
    code, _, complaints = exported(capsys, run, tmp_path / "out", *argv)
    assert (code, complaints.count("\n")) == (2, 1), complaints
    assert said in complaints
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "full folder", "bucket", "link"])
def test_what_is_there_is_not_overwritten(what, run, tmp_path, capsys):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    elif what == "full folder":
        out.mkdir()
        (out / "mine").write_text("mine")
    elif what == "link":
        out.symlink_to(tmp_path / "elsewhere")
    given = "gs://bucket/out" if what == "bucket" else out
    before = sorted(tmp_path.rglob("*"))
    code, _, complaints = exported(capsys, run, given)
    assert (code, complaints.count("\n")) == (2, 1)
    assert ("is there already" in complaints) or what == "bucket"
    assert sorted(tmp_path.rglob("*")) == before


def test_without_onnx_it_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name)
    )
    code, _, complaints = exported(capsys, run, tmp_path / "out", "--format", "onnx")
    assert code == 2
    assert complaints == ('lbsgd: --format onnx: ONNX needs onnx; pip install "lbsgd[onnx]"\n')


@pytest.mark.parametrize(
    "value",
    ["/home/me/x", "~/x", "../x", "./x", "C:\\x", "gs://mine/x", "s3://mine", "\\\\host\\x"],
)
def test_values_that_are_paths_are_left_out(value):
    given = {"a": [value, 3], "b": "imagenette/160px-v2", "c": "package.module:name"}
    assert _public(given) == {**given, "a": ["(a path, left out)", 3]}
