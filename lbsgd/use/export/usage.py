"""Writes how the files of an export are used, for its model card."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lbsgd.config.dotted import is_dotted
from lbsgd.config.keys import value_of
from lbsgd.data.interface import Interface
from lbsgd.models.keys import KEYS
from lbsgd.models.networks import parameter_type
from lbsgd.use.model import Model
from lbsgd.weights.torchvision import library_of, torchvision_network

_WIDE = 'jax.config.update("jax_enable_x64", True)\n'
# Keys that decide what a network of lbsgd's computes, as arguments of `build_model`.
_ARGUMENTS = {
    "model.skip_connections": "skip_connections",
    "model.zero_init_residual": "zero_init_residual",
    "model.normalization": "normalization",
    "batch_norm.epsilon": "norm_epsilon",
}


def snippets(model: Model, formats: Sequence[str]) -> list[str]:
    """Writes a paragraph for each format, in Markdown."""
    found = [f"Images are prepared {_preparation(model.interface)}"]
    if "torchvision" in formats:
        found += _torchvision(model)
    if "flax" in formats or "safetensors" in formats:
        file = "lbsgd.safetensors" if "safetensors" in formats else "flax_model.msgpack"
        found += [
            "Train on from it with lbsgd, on these classes or others:",
            _code("sh", _train_on(model, file)),
        ]
    if "flax" in formats:
        found += ["The variables of the Flax module:", _code("python", _flax(model))]
    if "stablehlo" in formats:
        found += ["The program, with weights and preprocessing; it needs JAX alone:"]
        found += [_code("python", _stablehlo(model))]
    if "onnx" in formats:
        found += ["The same as ONNX:", _code("python", _ONNX)]
    return found


def _train_on(model: Model, file: str) -> str:
    """Writes the command that trains on, with the keys of the network, whatever the recipe has."""
    flags = [f"--config.init_from={file}", f"--config.model.name={model.config.model.name}"]
    if not is_dotted(model.config.model.name):
        flags.append(f"--config.model.width={model.config.model.width:g}")
        flags += [f"--config.{key}={value}" for key, value in _differing(model).items()]
    return " \\\n    ".join(["lbsgd train --config CONFIG", *flags])


def _differing(model: Model) -> dict[str, Any]:
    """Lists the keys of lbsgd's own networks, besides name and width, not at their defaults."""
    found = {key: value_of(model.config, key) for key in _ARGUMENTS}
    return {key: value for key, value in found.items() if value != KEYS[key].default}


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _preparation(interface: Interface) -> str:
    h, w, _ = interface.image_shape
    if not interface.short_side:
        return f"whole; all are of {h}x{w} pixels."
    return (
        f"as torchvision's `Resize({interface.short_side})` and `CenterCrop(({h}, {w}))` do it on "
        "Pillow's images (bilinear, antialiased)."
    )


def _torchvision(model: Model) -> list[str]:
    network, classes = torchvision_network(model.variables), len(model.classes)
    channels = model.interface.image_shape[2]
    mean, std = (
        [*values] * (channels if len(values) == 1 else 1)
        for values in (model.interface.mean, model.interface.std)
    )
    outputs = model.config.model.num_classes or classes
    libraries, imports = "timm", "import timm\nimport torchvision"
    net = f'timm.create_model("{network}", num_classes={outputs}).eval()'
    if library_of(network) == "torchvision":
        libraries, imports = "torchvision or timm", "import torchvision"
        net = f"torchvision.models.{network}(num_classes={outputs}).eval()\n# or: net = {net}"
    text = f"""
{imports}
from safetensors.torch import load_file

net = {net}
net.load_state_dict(load_file("model.safetensors"))
normalize = torchvision.transforms.Normalize({mean}, {std})
logits = net(normalize(images))  # [n, 3, h, w], pixels from 0 to 1
"""
    return [f"With {libraries}:", _code("python", text)]


_MSGPACK = """
with open("flax_model.msgpack", "rb") as file:
    variables = msgpack_restore(file.read())  # {"params": ..., "batch_stats": ...}
"""


def _flax(model: Model) -> str:
    """Writes how the variables are read, and of lbsgd's own networks how they are applied."""
    if is_dotted(model.config.model.name):
        return f"from flax.serialization import msgpack_restore\n{_MSGPACK}"
    outputs = model.config.model.num_classes or len(model.classes)
    given = {"num_classes": outputs, "width": model.config.model.width}
    given |= {_ARGUMENTS[key]: value for key, value in _differing(model).items()}
    types = {
        "dtype": model.config.dtype,
        "param_dtype": np.dtype(parameter_type(model.config)).name,
    }
    given |= {name: value for name, value in types.items() if value != "float32"}
    words = ", ".join(f"{name}={value!r}" for name, value in given.items()).replace("'", '"')
    wide = f"\n{_WIDE}" if model.config.dtype == "float64" else ""
    return f"""
import jax
from flax.serialization import msgpack_restore
from lbsgd.models.networks import build_model
{wide}{_MSGPACK}
net = build_model("{model.config.model.name}", {words})
# images: numpy uint8 [n, h, w, c]
normalized = (images / 255 - {[*model.interface.mean]}) / {[*model.interface.std]}
logits = net.apply(variables, jax.numpy.asarray(normalized), train=False)
"""


_ONNX = """
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits, probabilities = session.run(None, {"images": images})  # uint8 [n, h, w, c]
"""


def _stablehlo(model: Model) -> str:
    wide = _WIDE if model.config.dtype == "float64" else ""
    name = "probabilities" if model.classifies else "outputs"
    return f"""
import jax
from jax import export

{wide}with open("model.stablehlo", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
found = program.call(images)  # uint8 [n, h, w, c], any n
print(found["{name}"])
"""
