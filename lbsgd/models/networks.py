"""Networks by name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbsgd.models.normalization import record_values
from lbsgd.models.resnet import ResNet, named_architecture
from lbsgd.models.roles import split_roles
from lbsgd.system.errors import ConfigError


def build_model(name: str, **options: Any) -> ResNet:
    """Builds the network called `name`; see `ResNet` for the options.

    Raises:
      ConfigError: no such network, or no residual blocks to initialise as the identity.
    """
    model = ResNet(named_architecture(name), **options)
    if model.zero_init_residual and not model.skip_connections:
        raise ConfigError(
            "model.zero_init_residual without model.skip_connections is a network that outputs 0; "
            "set model.zero_init_residual=False"
        )
    return model


def init_variables(model: ResNet, image_shape: tuple[int, ...], seed: int) -> Mapping[str, Any]:
    """Initialises the model's variables, parameters in the boxes of their roles.

    Drawn in float32 whatever the type, so that runs in float64 start from the same weights.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    single = model.clone(dtype=jnp.float32, param_dtype=jnp.float32)
    variables: Mapping[str, Any] = single.init(jax.random.key(seed), images, train=False)
    return jax.tree.map(lambda x: x.astype(model.param_dtype), variables)


class Network(NamedTuple):
    """A network as pure functions, whatever module it is made of."""

    module: nn.Module
    initialize: Callable[[], tuple[Any, Any]]
    train: Callable[..., tuple[Any, Any]]
    evaluate: Callable[..., Any]


class Outline(NamedTuple):
    """What tracing a network tells of it."""

    params: Any
    roles: Any
    batch_stats: Any
    of_step: Any
    values: dict[str, int]
    outputs: Any


def build_network(config: Any, num_classes: int, image_shape: tuple[int, ...]) -> Network:
    """Builds it."""
    model = build_model(
        config.model.name,
        num_classes=num_classes,
        width=config.model.width,
        skip_connections=config.model.skip_connections,
        zero_init_residual=config.model.zero_init_residual,
        normalization=config.model.normalization,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.float64 if config.dtype == "float64" else jnp.float32,
        precision=config.matmul_precision,
        norm_axis_names=("lane", "member") if config.batch_norm.synced_workers > 1 else (),
        norm_epsilon=config.batch_norm.epsilon,
    )

    def initialize() -> tuple[Any, Any]:
        variables = init_variables(model, image_shape, config.seed)
        return split_roles(variables["params"])[0], variables.get("batch_stats", {})

    def train(params: Any, batch_stats: Any, images: Any, key: Any) -> tuple[Any, Any]:
        outputs, left = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return outputs, left.get("batch_stats", {})

    def evaluate(params: Any, batch_stats: Any, images: Any) -> Any:
        return model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)

    network = Network(model, initialize, train, evaluate)
    _OUTLINES[id(network.initialize)] = functools.partial(
        init_variables, model, image_shape, config.seed
    )
    return network


_OUTLINES: dict[int, Any] = {}


def outline(network: Network) -> Outline:
    """Outlines."""
    values: dict[str, int] = {}
    with nn.intercept_methods(record_values(values)):
        variables = jax.eval_shape(_OUTLINES[id(network.initialize)])
    params, roles = split_roles(variables["params"])
    stats = variables.get("batch_stats", {})
    return Outline(params, roles, stats, jax.tree.map(lambda _: True, stats), values, None)
