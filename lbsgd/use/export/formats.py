"""The formats that a network is exported in: what writes each, and what reads it back."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from lbsgd.models.networks import Network, build_network, parameter_type
from lbsgd.use.model import Model


class Options(NamedTuple):
    """Holds what a user may choose.

    Attributes:
      keep_float64: whether the weights of a run in float64 stay so for torchvision.
      platforms: that StableHLO is lowered for, by `jax.export`'s names.
    """

    keep_float64: bool = False
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")


class Format(NamedTuple):
    """Says how a network is exported.

    Attributes:
      file: its name within the export.
      refusal: why a network cannot be exported so, a line; "" where it can.
      write: writes the file.
      outputs: reads the file back, and computes the network's outputs of uint8 images by it.
      reference: the network that the outputs are compared with.
      rounding: the types that numbers are rounded to on the way, besides that of the reference.
    """

    file: str
    refusal: Callable[[Model], str]
    write: Callable[[Model, pathlib.Path, Options], None]
    outputs: Callable[[Model, pathlib.Path, np.ndarray], Any]
    reference: Callable[[Model], Model]
    rounding: tuple[str, ...] = ()


def on_host(model: Model) -> dict[str, Any]:
    """Copies the variables of a network to the host: {"params": ..., "batch_stats": ...}."""
    return dict(jax.device_get(dict(model.variables)))


def with_variables(
    model: Model, variables: Mapping[str, Any], network: Network | None = None, config: Any = None
) -> Model:
    """Makes a network anew with other variables, and as another one of another config."""
    return Model(
        network or model.network,
        variables,
        model.interface,
        config or model.config,
        model.update,
        statistics=model.statistics,
        devices=model.devices,
    )


def in_parameter_type(model: Model) -> Model:
    """Makes the network anew so that it computes in the type of its parameters, exactly.

    Other libraries know neither `dtype` nor `matmul_precision` of the config.
    """
    dtype = np.dtype(parameter_type(model.config)).name
    if (model.config.dtype, model.config.matmul_precision) == (dtype, "highest"):
        return model
    config = ml_collections.ConfigDict(model.config)
    config.update({"dtype": dtype, "matmul_precision": "highest"})
    outputs = config.model.num_classes or len(model.classes)
    network = build_network(config, outputs, model.interface.image_shape)
    return with_variables(model, on_host(model), network, ml_collections.FrozenConfigDict(config))
