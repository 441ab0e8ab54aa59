"""Writes how the files of an export are used, for its model card."""

from collections.abc import Sequence

from lbsgd.data.interface import Interface
from lbsgd.use.model import Model
from lbsgd.weights.torchvision import torchvision_network


def snippets(model: Model, formats: Sequence[str]) -> list[str]:
    """Writes a paragraph for each format, in Markdown."""
    found = [f"Images are prepared {_preparation(model.interface)}"]
    if "torchvision" in formats:
        found += _torchvision(model)
    if "flax" in formats or "safetensors" in formats:
        file = "lbsgd.safetensors" if "safetensors" in formats else "flax_model.msgpack"
        found += [
            "Train on from it with lbsgd, on these classes or others:",
            _code("sh", f"lbsgd train --config CONFIG --config.init_from={file}"),
        ]
    if "flax" in formats:
        found += ["The variables of the Flax module:", _code("python", _MSGPACK)]
    if "stablehlo" in formats:
        found += ["The program, with weights and preprocessing; it needs JAX alone:"]
        found += [_code("python", _stablehlo(model))]
    if "onnx" in formats:
        found += ["The same as ONNX:", _code("python", _ONNX)]
    return found


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
    text = f"""
import torchvision
from safetensors.torch import load_file

net = torchvision.models.{network}(num_classes={outputs}).eval()
# or: net = timm.create_model("{network}", num_classes={outputs}).eval()
net.load_state_dict(load_file("model.safetensors"))
normalize = torchvision.transforms.Normalize({mean}, {std})
logits = net(normalize(images))  # [n, 3, h, w], pixels from 0 to 1
"""
    return ["With torchvision or timm:", _code("python", text)]


_MSGPACK = """
from flax.serialization import msgpack_restore

with open("flax_model.msgpack", "rb") as file:
    variables = msgpack_restore(file.read())  # {"params": ..., "batch_stats": ...}
"""

_ONNX = """
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits, probabilities = session.run(None, {"images": images})  # uint8 [n, h, w, c]
"""


def _stablehlo(model: Model) -> str:
    wide = 'jax.config.update("jax_enable_x64", True)\n' if model.config.dtype == "float64" else ""
    name = "probabilities" if model.classifies else "outputs"
    return f"""
import jax
from jax import export

{wide}with open("model.stablehlo", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
found = program.call(images)  # uint8 [n, h, w, c], any n
print(found["{name}"])
"""
