"""Exports lbsgd's own ResNets as ONNX graphs, written node by node: pixels in, probabilities out.

The graph holds the weights and the preprocessing; the batch size is free. It computes in float32,
the one type whose convolutions every runtime has. Nothing is traced: what a ResNet is made of,
`lbsgd.models.resnet` says.
"""

import importlib
import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

import lbsgd
from lbsgd.data.interface import Interface
from lbsgd.models.normalization import GroupNorm
from lbsgd.models.resnet import ResNet
from lbsgd.system.errors import ConfigError
from lbsgd.use.export.arrays import described
from lbsgd.use.export.formats import Format, Options, in_parameter_type, on_host
from lbsgd.use.model import Model

# Which most runtimes of today and of years ago read.
OPSET, IR_VERSION = 17, 8
# Protocol buffers hold no more.
MOST_BYTES = 2**31 - 2**20
_PACKAGES = ("onnx", "onnxruntime")


class _Graph:
    """Collects nodes and constants; each node is called by the name of its output."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        """Begins an empty graph.

        Args:
          arrays: the variables, by name, with slashes.
        """
        self._onnx: Any = importlib.import_module("onnx")
        self.arrays = arrays
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, op: str, output: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns the name of its output."""
        node = self._onnx.helper.make_node(op, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        """Adds a constant, and returns its name."""
        self.constants[name] = np.asarray(array, order="C")
        return name

    def weight(self, name: str) -> str:
        """Adds a variable as a constant, kernels in ONNX's layout [out, in, h, w]."""
        array = self.arrays[name].astype(np.float32)
        return self.constant(name, array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


def _refusal(model: Model) -> str:
    if not isinstance(model.module, ResNet):
        return (
            f"ONNX is written for lbsgd's own ResNets, and the network is {model.config.model.name}"
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f'ONNX needs {" and ".join(missing)}; pip install "lbsgd[onnx]"'
    if sum(4 * x.size for x in flatten_dict(on_host(model), sep="/").values()) > MOST_BYTES:
        return "an ONNX file holds less than 2 GiB, and the network has more"
    return ""


def _write(model: Model, path: pathlib.Path, options: Options) -> None:
    onnx: Any = importlib.import_module("onnx")
    made = build(model)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)


def build(model: Model) -> Any:
    """Builds the `onnx.ModelProto` of one of lbsgd's ResNets.

    Its input is `images`, uint8 `[batch, h, w, c]`; its outputs are `logits` and `probabilities`,
    float32 `[batch, outputs]`. Classes and preprocessing are in its `metadata_props`.

    Raises:
      ConfigError: the network is none of lbsgd's ResNets.
    """
    if not isinstance(model.module, ResNet):
        raise ConfigError(_refusal(model))
    onnx: Any = importlib.import_module("onnx")
    graph = _Graph(flatten_dict(on_host(model), sep="/"))
    _add_network(graph, model.module, _add_preprocessing(graph, model.interface))
    outputs = len(graph.constants["params/classifier/bias"])
    helper, kinds = onnx.helper, onnx.TensorProto
    shape = ["batch", *model.interface.image_shape]
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            str(model.config.model.name),
            [helper.make_tensor_value_info("images", kinds.UINT8, shape)],
            [
                helper.make_tensor_value_info(name, kinds.FLOAT, ["batch", outputs])
                for name in ("logits", "probabilities")
            ],
            [onnx.numpy_helper.from_array(x, name) for name, x in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="lbsgd",
        producer_version=lbsgd.__version__,
    )
    helper.set_model_props(made, described(model))
    return made


def _add_preprocessing(graph: _Graph, interface: Interface) -> str:
    """Adds `lbsgd.step.pixels.normalize`, and the layout of ONNX, [batch, c, h, w]."""
    x = graph.add("Cast", "pixels", "images", to=graph._onnx.TensorProto.FLOAT)
    x = graph.add("Div", "scaled", x, graph.constant("most", np.asarray(255, np.float32)))
    mean, std = (np.asarray(v, np.float32) for v in (interface.mean, interface.std))
    x = graph.add("Sub", "centred", x, graph.constant("mean", mean))
    x = graph.add("Div", "normalized", x, graph.constant("std", std))
    return graph.add("Transpose", "channels_first", x, perm=[0, 3, 1, 2])


def _add_network(graph: _Graph, net: ResNet, x: str) -> None:
    """Adds what `ResNet.__call__` computes."""
    imagenet = net.architecture.stem == "imagenet"
    x = _add_convolution(graph, net, "stem_conv", "stem_norm", x, 2 if imagenet else 1)
    x = graph.add("Relu", "stem_relu", x)
    if imagenet:
        sides = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
        x = graph.add("MaxPool", "stem_pool", x, **sides)
    for name, stride in _blocks(net):
        x = _add_block(graph, net, name, stride, x)
    x = graph.add("Flatten", "features", graph.add("GlobalAveragePool", "pooled", x))
    kernel, bias = (graph.weight(f"params/classifier/{part}") for part in ("kernel", "bias"))
    logits = graph.add("Gemm", "logits", x, kernel, bias)
    graph.add("Softmax", "probabilities", logits, axis=-1)


def _blocks(net: ResNet) -> Iterator[tuple[str, int]]:
    """Yields the name and the stride of each block."""
    for stage, blocks in enumerate(net.architecture.blocks, 1):
        for block in range(1, blocks + 1):
            yield f"stage{stage}_block{block}", 2 if stage > 1 and block == 1 else 1


def _add_block(graph: _Graph, net: ResNet, name: str, stride: int, x: str) -> str:
    """Adds what `Block.__call__` computes."""
    layers = 3 if net.architecture.bottleneck else 2
    strided = layers - 1 if net.architecture.bottleneck else 1
    y = x
    for i in range(1, layers + 1):
        conv, norm = f"{name}/conv{i}", f"{name}/norm{i}"
        y = _add_convolution(graph, net, conv, norm, y, stride if i == strided else 1)
        if i < layers:
            y = graph.add("Relu", f"{name}/relu{i}", y)
    if net.skip_connections:
        y = graph.add("Add", f"{name}/sum", y, _add_shortcut(graph, net, name, stride, x))
    return graph.add("Relu", f"{name}/relu{layers}", y)


def _add_shortcut(graph: _Graph, net: ResNet, name: str, stride: int, x: str) -> str:
    conv, norm = f"{name}/shortcut_conv", f"{name}/shortcut_norm"
    if f"params/{conv}/conv/kernel" in graph.arrays:
        return _add_convolution(graph, net, conv, norm, x, stride)
    channels, _ = graph.arrays[f"params/{name}/conv1/conv/kernel"].shape[2:]
    layers = 3 if net.architecture.bottleneck else 2
    out = graph.arrays[f"params/{name}/conv{layers}/conv/kernel"].shape[3]
    if channels == out and stride == 1:
        return x
    # Every second pixel, and channels of 0.
    starts, ends, axes, steps = (
        graph.constant(f"{name}/pad/{what}", np.array(values, np.int64))
        for what, values in (
            ("starts", [0, 0]),
            ("ends", [2**31 - 1] * 2),
            ("axes", [2, 3]),
            ("steps", [stride] * 2),
        )
    )
    x = graph.add("Slice", f"{name}/strided", x, starts, ends, axes, steps)
    pads = np.array([0] * 5 + [out - channels, 0, 0], np.int64)
    return graph.add("Pad", f"{name}/padded", x, graph.constant(f"{name}/pad/pads", pads))


def _add_convolution(graph: _Graph, net: ResNet, conv: str, norm: str, x: str, stride: int) -> str:
    """Adds a convolution and the normalization after it."""
    kernel = graph.weight(f"params/{conv}/conv/kernel")
    size = graph.constants[kernel].shape[2]
    bias = [graph.weight(f"params/{conv}/conv/bias")] if net.normalization == "none" else []
    sides = {"strides": [stride] * 2, "pads": [size // 2] * 4}
    x = graph.add("Conv", conv, x, kernel, *bias, kernel_shape=[size] * 2, **sides)
    if net.normalization == "batch":
        names = [f"params/{norm}/scale", f"params/{norm}/offset"]
        names += [f"batch_stats/{norm}/mean", f"batch_stats/{norm}/var"]
        parts = [graph.weight(name) for name in names]
        return graph.add("BatchNormalization", norm, x, *parts, epsilon=net.norm_epsilon)
    return _add_group_norm(graph, net, norm, x) if net.normalization == "group" else x


def _add_group_norm(graph: _Graph, net: ResNet, norm: str, x: str) -> str:
    """Adds group norm; ONNX of this version has that of instances, here each group is one."""
    scale, offset = (graph.arrays[f"params/{norm}/norm/{part}"] for part in ("scale", "bias"))
    groups = GroupNorm.groups(len(scale))
    by_group = graph.constant(f"{norm}/groups", np.array([0, groups, -1], np.int64))
    one = graph.constant(f"{norm}/one", np.ones(groups, np.float32))
    zero = graph.constant(f"{norm}/zero", np.zeros(groups, np.float32))
    shape = graph.add("Shape", f"{norm}/shape", x)
    y = graph.add("Reshape", f"{norm}/grouped", x, by_group)
    instance = {"epsilon": net.norm_epsilon}
    y = graph.add("InstanceNormalization", f"{norm}/centred", y, one, zero, **instance)
    y = graph.add("Reshape", f"{norm}/ungrouped", y, shape)
    for op, part, array in (("Mul", "scale", scale), ("Add", "bias", offset)):
        factor = graph.constant(
            f"params/{norm}/norm/{part}", array.astype(np.float32)[:, None, None]
        )
        y = graph.add(op, f"{norm}/{part}", y, factor)
    return y


def _outputs(model: Model, path: pathlib.Path, images: np.ndarray) -> Any:
    """Computes the first image alone and then the others, in batches of different sizes."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = [batch for batch in (images[:1], images[1:]) if len(batch)]
    return np.concatenate([session.run(["logits"], {"images": batch})[0] for batch in batches])


ONNX = Format("model.onnx", _refusal, _write, _outputs, in_parameter_type, rounding=("float32",))
