"""Each format holds the network: other libraries compute from it what lbsgd computes."""

import ast
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from exported_models import CLASSES, pixels, random_model
from flax import serialization
from jax import export
from safetensors.numpy import load_file, save_file

from lbsgd.system.errors import ConfigError
from lbsgd.use.export.arrays import FLAX, OWN, TORCHVISION
from lbsgd.use.export.checking import FailedError, Images, check, relative_rounding
from lbsgd.use.export.formats import Options
from lbsgd.use.export.onnx_graph import ONNX
from lbsgd.use.export.stablehlo import STABLEHLO
from lbsgd.use.export.usage import snippets
from lbsgd.weights.files import open_weights

LONG = pytest.mark.long
# Nothing but the kinds of layers matters to how they are written.
SMALL = {"model.width": 0.125}
IMAGES = Images(pixels(3), "test")


def exported(kind, model, folder, **options):
    path = folder / kind.file
    kind.write(model, path, Options(**options))
    return path


def assert_outputs(found, model, images, rtol):
    expected = np.asarray(model(images), np.float64)
    largest = np.abs(expected).max()
    assert expected.std() > 0.01 * largest
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=rtol * largest)


# --- Flax ----------------------------------------------------------------------------------------

PLAIN = {
    **SMALL,
    "model.skip_connections": False,
    "model.zero_init_residual": False,
    "model.normalization": "group",
    "batch_norm.epsilon": 1e-3,
}


def check_flax_snippet(code, model, folder, monkeypatch):
    """Runs code that reads the variables below a folder, and compares what it computes."""
    monkeypatch.chdir(folder)
    found = {"images": pixels(2)}
    exec(code, found)
    assert_outputs(found["logits"], model, found["images"], 1e-5)


def test_the_page_builds_the_module_that_takes_the_variables(tmp_path, monkeypatch):
    """Here of a smaller depth."""
    model = random_model("cifar_resnet8", **{"model.width": 0.25, "model.num_classes": 10})
    (tmp_path / "exported" / "a").mkdir(parents=True)
    exported(FLAX, model, tmp_path / "exported" / "a")
    page = (pathlib.Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*?build_model.*?)```", page, re.DOTALL)
    check_flax_snippet(code.replace("resnet18", "cifar_resnet8"), model, tmp_path, monkeypatch)


@LONG
@pytest.mark.parametrize("keys", [PLAIN, {**SMALL, "model.normalization": "none"}])
def test_the_card_builds_it_with_all_that_differs(keys, tmp_path, monkeypatch):
    model = random_model("cifar_resnet8", **keys)
    exported(FLAX, model, tmp_path)
    text = "\n".join(snippets(model, ["flax"]))
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    check_flax_snippet(code, model, tmp_path, monkeypatch)


# --- torchvision and timm ------------------------------------------------------------------------


def torch_outputs(library, snippet, state, images, dtype):
    """Computes outputs as the snippet of the model card says, its normalization included."""
    import torch_resnet  # which skips a test where there is no PyTorch

    how = (
        r"torchvision\.models\.(\w+)\(" if library == "torchvision" else r'create_model\("(\w+)", '
    )
    ((name, outputs),) = re.findall(how + r"num_classes=(\d+)\)\.eval\(\)", snippet)
    net = torch_resnet.torch_resnet(library, name, int(outputs)).to(
        getattr(torch_resnet.torch, dtype)
    )
    torch_resnet.load_into(net, state)
    (normalize,) = re.findall(r"transforms\.Normalize\((.*)\)", snippet)
    mean, std = ast.literal_eval(f"({normalize})")
    inputs = (images.astype(dtype) / 255 - np.array(mean, dtype)) / np.array(std, dtype)
    with torch_resnet.torch.no_grad():
        return net(torch_resnet.torch.tensor(inputs.transpose(0, 3, 1, 2))).numpy()


@LONG
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-10), ("float32", None)])
def test_torchvision_and_timm_compute_the_same(name, dtype, rtol, tmp_path):
    model = random_model(name, dtype=dtype, **{"model.num_classes": len(CLASSES) + 2})
    path = exported(TORCHVISION, model, tmp_path, keep_float64=True)
    state = load_file(path)
    assert {x.dtype.name for x in state.values()} == {dtype, "int64"}
    rtol = rtol or relative_rounding(model, ["float32"])
    snippet = "\n".join(snippets(model, ["torchvision"]))
    for library in ("torchvision", "timm"):
        found = torch_outputs(library, snippet, state, IMAGES.pixels, dtype)
        assert_outputs(found, model, IMAGES.pixels, rtol)


@LONG
def test_timm_computes_the_same_of_a_resnet_d(tmp_path):
    """torchvision has none, which the snippet does not say it has."""
    model = random_model("resnet18d", dtype="float64")
    state = load_file(exported(TORCHVISION, model, tmp_path, keep_float64=True))
    snippet = "\n".join(snippets(model, ["torchvision"]))
    assert "torchvision.models" not in snippet
    assert "import timm\n" in snippet
    found = torch_outputs("timm", snippet, state, IMAGES.pixels, "float64")
    assert_outputs(found, model, IMAGES.pixels, 1e-10)


@LONG
def test_a_run_in_float64_is_float32_for_torchvision_unless_it_is_kept(tmp_path):
    model = random_model("resnet18", (32, 32, 3), dtype="float64")
    path = exported(TORCHVISION, model, tmp_path)
    assert {x.dtype.name for x in load_file(path).values()} == {"float32", "int64"}
    found = check(TORCHVISION, path, model, IMAGES._replace(pixels=pixels(2, (32, 32, 3))))
    assert 1e-10 < found.largest < found.tolerance


# --- lbsgd's names -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OWN, FLAX])
@pytest.mark.parametrize("keys", [{}, {"model.normalization": "group"}])
def test_own_names_hold_each_array_for_init_from(kind, keys, tmp_path):
    model = random_model("cifar_resnet8", **SMALL, **keys)
    path = exported(kind, model, tmp_path)
    leaves = jax.tree_util.tree_leaves_with_path(dict(model.variables))
    expected = {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in leaves}
    with open_weights(str(path)) as stored:
        assert stored.entries.keys() == expected.keys()
        assert stored.about.classes == (CLASSES if kind is OWN else ())
        for name, array in expected.items():
            np.testing.assert_array_equal(stored.read(name), array)
    assert check(kind, path, model, IMAGES).largest == 0


@LONG
def test_msgpack_is_what_flax_restores_for_its_module(tmp_path):
    model = random_model("cifar_resnet8", **SMALL)
    variables = serialization.msgpack_restore(exported(FLAX, model, tmp_path).read_bytes())
    images = model.preprocess(jnp.asarray(IMAGES.pixels))
    found = model.module.apply(variables, images, train=False)
    assert_outputs(found, model, IMAGES.pixels, relative_rounding(model, ["float32"]))


@pytest.mark.parametrize("kind", [TORCHVISION, OWN])
def test_metadata_say_classes_and_preprocessing(kind, tmp_path):
    name = "resnet18" if kind is TORCHVISION else "cifar_resnet8"
    model = random_model(name, **({} if kind is TORCHVISION else SMALL))
    file = safetensors.safe_open(exported(kind, model, tmp_path), framework="numpy")
    about = file.metadata()
    assert json.loads(about["classes"]) == list(CLASSES)
    said = json.loads(about["preprocessing"])
    assert said == model.interface.to_json()["preprocessing"]
    with open_weights(str(tmp_path / kind.file)) as stored:
        shape, mean, std = stored.about.pixels
        assert (shape, mean) == (model.interface.image_shape, model.interface.mean)
        assert std == model.interface.std
        assert stored.about.model["model.name"] == name
        assert stored.about.model["model.width"] == model.config.model.width


# --- StableHLO -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "rtol"), [("float32", None), pytest.param("float64", 1e-10, marks=LONG)]
)
def test_stablehlo_takes_any_batch_size(dtype, rtol, tmp_path):
    model = random_model("cifar_resnet8", dtype=dtype, **SMALL)
    path = exported(STABLEHLO, model, tmp_path)
    program = export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert not program.has_vjp()
    (shape,) = program.in_avals
    assert shape.dtype == np.uint8
    rtol = rtol or relative_rounding(model, ["float32"])
    with jax.enable_x64(dtype == "float64"):
        for n in (1, 3, 8):
            found = program.call(pixels(n))
            assert_outputs(found["logits"], model, pixels(n), rtol)
            powers = np.exp(np.asarray(found["logits"], np.float64))
            expected = powers / powers.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-5, atol=1e-7)


@LONG
def test_stablehlo_computes_in_bfloat16_as_the_run_did(tmp_path):
    """To the rounding of activations; another network is further away."""
    model = random_model("cifar_resnet8", dtype="bfloat16", **SMALL)
    path = exported(STABLEHLO, model, tmp_path)
    check(STABLEHLO, path, model, IMAGES)
    with pytest.raises(FailedError):
        check(STABLEHLO, path, random_model("cifar_resnet8", seed=1, **SMALL), IMAGES)


def test_stablehlo_names_no_file_of_this_machine(tmp_path):
    before = jax.config.jax_traceback_in_locations_limit
    model = random_model("cifar_resnet8", **SMALL)
    content = exported(STABLEHLO, model, tmp_path).read_bytes()
    assert b".py" not in content
    assert jax.config.jax_traceback_in_locations_limit == before
    assert b".py" in export.export(jax.jit(lambda x: x + 1))(np.zeros(3)).serialize()  # else it is


def test_stablehlo_needs_the_platform_that_it_is_checked_on(tmp_path):
    with pytest.raises(ConfigError, match="--platforms must hold cpu"):
        exported(STABLEHLO, random_model("cifar_resnet8", **SMALL), tmp_path, platforms=("tpu",))


@LONG
def test_stablehlo_is_served_without_lbsgd(tmp_path):
    model = random_model("cifar_resnet8", **SMALL)
    path = exported(STABLEHLO, model, tmp_path)
    np.save(tmp_path / "images.npy", IMAGES.pixels)
    code = (
        "import sys, numpy as np\n"
        "from jax import export\n"
        f"program = export.deserialize(bytearray(open({str(path)!r}, 'rb').read()))\n"
        f"found = program.call(np.load({str(tmp_path / 'images.npy')!r}))\n"
        f"np.save({str(tmp_path / 'found.npy')!r}, found['logits'])\n"
        "assert not {'lbsgd', 'flax'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    rtol = relative_rounding(model, ["float32"])
    assert_outputs(np.load(tmp_path / "found.npy"), model, IMAGES.pixels, rtol)


# --- ONNX ----------------------------------------------------------------------------------------

PLAIN = {"model.skip_connections": False, "model.zero_init_residual": False}
ONNX_NETWORKS = [
    ("cifar_resnet8", {}),
    ("cifar_resnet8", {"model.normalization": "group"}),
    *(
        pytest.param(name, keys, marks=LONG)
        for name, keys in (
            ("cifar_resnet8", {"model.normalization": "none"}),
            (
                "cifar_resnet14",
                {"model.skip_connections": False, "model.zero_init_residual": False},
            ),
            ("cifar_resnet8", {"batch_norm.epsilon": 0.1}),
            ("cifar_resnet8", {"dtype": "float64"}),
            ("cifar_resnet8", {"dtype": "bfloat16"}),
            ("resnet18", {}),
            ("resnet50", {}),
        )
    ),
]


@pytest.mark.parametrize(("name", "keys"), ONNX_NETWORKS)
def test_onnx_computes_the_same_of_any_batch_size(name, keys, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model = random_model(name, **{**SMALL, "model.width": 0.25, **keys})
    assert not ONNX.refusal(model)
    path = exported(ONNX, model, tmp_path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    reference = ONNX.reference(model)
    for n in (1, 3):
        logits, probabilities = session.run(None, {"images": pixels(n)})
        rtol = relative_rounding(model, ["float32"])
        assert_outputs(logits, reference, pixels(n), rtol)
        powers = np.exp(logits.astype(np.float64))
        expected = powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-7)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["preprocessing"]) == model.interface.to_json()["preprocessing"]


# --- what is refused, and what is found wrong ----------------------------------------------------


def test_a_network_that_torchvision_has_not_is_refused():
    assert "torchvision has no such network" in TORCHVISION.refusal(random_model("cifar_resnet8"))


def test_onnx_needs_its_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refusal = ONNX.refusal(random_model("cifar_resnet8", **SMALL))
    assert refusal == 'ONNX needs onnx and onnxruntime; pip install "lbsgd[onnx]"'


@pytest.mark.parametrize("kind", [OWN, pytest.param(STABLEHLO, marks=LONG), ONNX])
def test_weights_that_are_not_those_written_are_noticed(kind, tmp_path):
    """One kernel, a hundredth larger."""
    if kind is ONNX:
        pytest.importorskip("onnxruntime")
    model = random_model("cifar_resnet8", **SMALL)
    other = random_model("cifar_resnet8", **SMALL)
    kernel = other.variables["params"]["stage2_block1"]["conv1"]["conv"]
    kernel["kernel"] = kernel["kernel"] * np.float32(1.01)
    path = exported(kind, other, tmp_path)
    with pytest.raises(FailedError, match=path.name):
        check(kind, path, model, IMAGES)
    assert check(kind, path, other, IMAGES).largest < 1e-5


@pytest.mark.parametrize("value", [np.nan, pytest.param(np.inf, marks=LONG)])
def test_outputs_that_are_not_finite_are_noticed(value, tmp_path):
    model = random_model("cifar_resnet8", **SMALL)
    model.variables["params"]["classifier"]["bias"] = np.full(len(CLASSES), value, np.float32)
    with pytest.raises(FailedError, match="differs"):
        check(OWN, exported(OWN, model, tmp_path), model, IMAGES)


@pytest.mark.parametrize(
    "kind", [pytest.param(TORCHVISION, marks=LONG), OWN, FLAX, STABLEHLO, ONNX]
)
def test_a_file_cut_short_is_noticed(kind, tmp_path):
    if kind is ONNX:
        pytest.importorskip("onnxruntime")
    name, keys = ("resnet18", {}) if kind is TORCHVISION else ("cifar_resnet8", SMALL)
    model = random_model(name, **keys)
    path = exported(kind, model, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FailedError, match="cannot be read back"):
        check(kind, path, model, IMAGES)


def test_a_file_of_fewer_arrays_is_noticed(tmp_path):
    model = random_model("cifar_resnet8", **SMALL)
    path = exported(OWN, model, tmp_path)
    arrays = load_file(path)
    del arrays["params/classifier/bias"]
    save_file(arrays, path)
    with pytest.raises(FailedError, match="others than those"):
        check(OWN, path, model, IMAGES)
