"""Networks by name."""

from collections.abc import Callable, Mapping
from typing import Any

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


def outline(init: Callable[[], Mapping[str, Any]]) -> tuple[Any, Any, dict[str, int]]:
    """Outlines a network by tracing it, without computing anything.

    Args:
      init: `init_variables`, bound.

    Returns:
      shapes of the parameters; their roles; by layer, how many values of an example are normalised
      together.
    """
    values: dict[str, int] = {}
    with nn.intercept_methods(record_values(values)):
        variables = jax.eval_shape(init)
    return *split_roles(variables["params"]), values
