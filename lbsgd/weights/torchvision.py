"""Translates ResNets between lbsgd's variables and the state dicts of torchvision and timm.

    params/stem_conv/conv/kernel            [h, w, in, out]   conv1.weight      [out, in, h, w]
    params/stage2_block1/norm1/scale, offset                  layer2.0.bn1.weight, bias
    batch_stats/stage2_block1/norm1/mean, var                 layer2.0.bn1.running_mean, running_var
    params/stage2_block1/shortcut_conv, shortcut_norm         layer2.0.downsample.0, downsample.1
    params/classifier/kernel                [in, classes]     fc.weight         [classes, in]

All have the stride of a bottleneck in its 3x3 convolution (ResNet v1.5). torch also counts the
batches that each batch norm has seen, `num_batches_tracked`, of which nothing depends here.

ResNet-D, which timm alone has, begins with conv1.0, .1, .3, .4 and .6, and its shortcuts with an
average pooling that has no arrays:

    params/stem_conv2, stem_norm2           conv1.3, conv1.4, ReLUs between
    params/stage2_block1/shortcut_conv, shortcut_norm         layer2.0.downsample.1, downsample.2
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lbsgd.models.resnet import IMAGENET, Architecture
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize

COUNTER = ".num_batches_tracked"
# The axes of a kernel of ours in torch's order, and of one of torch's in ours.
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_TO_OURS = {4: (2, 3, 1, 0), 2: (1, 0)}


def torchvision_names(architecture: Architecture) -> dict[str, str]:
    """Maps our name of each variable to torchvision's, in the order of its state dict.

    Args:
      architecture: one of `lbsgd.models.resnet.IMAGENET`.
    """
    names: dict[str, str] = {}
    for ours, theirs in _layers(architecture):
        if ours.endswith("classifier"):
            names |= {f"params/{ours}/kernel": f"{theirs}.weight"}
            names |= {f"params/{ours}/bias": f"{theirs}.bias"}
        elif "norm" in ours:
            names |= {f"params/{ours}/scale": f"{theirs}.weight"}
            names |= {f"params/{ours}/offset": f"{theirs}.bias"}
            names |= {f"batch_stats/{ours}/mean": f"{theirs}.running_mean"}
            names |= {f"batch_stats/{ours}/var": f"{theirs}.running_var"}
        else:
            names |= {f"params/{ours}/conv/kernel": f"{theirs}.weight"}
    return names


def torchvision_network(variables: Mapping[str, Any]) -> str:
    """Tells which of torchvision's or timm's networks has such variables, by name: "resnet50".

    Args:
      variables: {"params": ..., "batch_stats": ...}, nested, of arrays or shapes.

    Raises:
      ConfigError: none has: depth, width, channels or normalization differ, or it is none of
        lbsgd's ResNets.
    """
    flat = _flat(variables)
    for network, architecture in IMAGENET.items():
        if flat.keys() == torchvision_names(architecture).keys():
            stem = [flat[name] for name in sorted(flat) if name.startswith("params/stem_conv")]
            channels, features = stem[0].shape[2], stem[-1].shape[3]
            if (channels, features) == (3, architecture.width):
                return network
            raise ConfigError(
                f"{library_of(network)} has {network} with model.width=1 and for images of 3 "
                f"channels only, and this one has model.width={features / architecture.width:g}, "
                f"for {pluralize(channels, 'channel')}"
            )
    raise ConfigError(
        f"torchvision has no such network, nor has timm; they have {', '.join(IMAGENET)}, with "
        "batch norm and skip connections"
    )


def library_of(network: str) -> str:
    """Names the library whose network it is: torchvision has no ResNet-D."""
    return "timm" if IMAGENET[network].stem == "deep" else "torchvision"


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Translates the variables of a network to the state dict that torchvision and timm load.

    Types stay as they are. Counters of batches are 0.

    Args:
      variables: {"params": ..., "batch_stats": ...}, nested, of arrays.

    Raises:
      ConfigError: they have no such network; see `torchvision_network`.
    """
    flat, state = _flat(variables), {}
    names = torchvision_names(IMAGENET[torchvision_network(variables)])
    for ours, theirs in names.items():
        state[theirs] = to_torch_layout(np.asarray(flat[ours]))
        if theirs.endswith(".running_var"):
            state[theirs.removesuffix(".running_var") + COUNTER] = np.zeros((), np.int64)
    return state


def from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Translates a whole state dict of torchvision's or timm's ResNet to variables.

    Returns:
      {"params": ..., "batch_stats": ...}, nested, in the types of the state dict.

    Raises:
      ConfigError: its names are not those of such a network.
    """
    there = {name for name in state if not name.endswith(COUNTER)}
    for architecture in IMAGENET.values():
        names = torchvision_names(architecture)
        if there == set(names.values()):
            flat = {ours: to_own_layout(state[theirs]) for ours, theirs in names.items()}
            return unflatten_dict(flat, sep="/")
    raise ConfigError(
        f"these arrays are not those of torchvision's or timm's {', '.join(IMAGENET)}"
    )


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Transposes a kernel `[h, w, in, out]` or `[in, out]` as torch has it; others stay."""
    return _transpose(array, _TO_TORCH)


def to_own_layout(array: np.ndarray) -> np.ndarray:
    """Transposes a kernel of torch, `[out, in, h, w]` or `[out, in]`, as Flax has it."""
    return _transpose(array, _TO_OURS)


def own_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that an array of torch's has in our layout."""
    return tuple(shape[axis] for axis in _TO_OURS.get(len(shape), range(len(shape))))


def _transpose(array: np.ndarray, orders: Mapping[int, tuple[int, ...]]) -> np.ndarray:
    if array.ndim not in orders:
        return array
    return np.ascontiguousarray(array.transpose(orders[array.ndim]))


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(dict(variables), sep="/")


def _layers(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """Yields pairs of our name of a layer and torchvision's, in order."""
    deep = architecture.stem == "deep"
    if deep:
        yield from (("stem_conv1", "conv1.0"), ("stem_norm1", "conv1.1"))
        yield from (("stem_conv2", "conv1.3"), ("stem_norm2", "conv1.4"))
        yield from (("stem_conv3", "conv1.6"), ("stem_norm3", "bn1"))
    else:
        yield from (("stem_conv", "conv1"), ("stem_norm", "bn1"))
    for stage, blocks in enumerate(architecture.blocks, 1):
        for block in range(1, blocks + 1):
            ours, theirs = f"stage{stage}_block{block}", f"layer{stage}.{block - 1}"
            for i in range(1, 4 if architecture.bottleneck else 3):
                yield f"{ours}/conv{i}", f"{theirs}.conv{i}"
                yield f"{ours}/norm{i}", f"{theirs}.bn{i}"
            # Projected is where the shape changes; that of bottlenecks does in the first stage too.
            if block == 1 and (stage > 1 or architecture.bottleneck):
                yield f"{ours}/shortcut_conv", f"{theirs}.downsample.{int(deep)}"
                yield f"{ours}/shortcut_norm", f"{theirs}.downsample.{int(deep) + 1}"
    yield "classifier", "fc"
