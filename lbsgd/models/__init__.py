"""Networks by name."""

from typing import Any

from lbsgd.errors import ConfigError
from lbsgd.models.resnet import ARCHITECTURES, ResNet


def build_model(name: str, **options: Any) -> ResNet:
    """The network called `name`; see `ResNet` for the options.

    Raises:
      ConfigError: no such network, or no residual blocks to initialise as the identity.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"unknown model.name {name!r}; known: {', '.join(ARCHITECTURES)}")
    model = ResNet(ARCHITECTURES[name], **options)
    if model.zero_init_residual and not model.skip_connections:
        raise ConfigError(
            "model.zero_init_residual without model.skip_connections is a network that outputs 0; "
            "set model.zero_init_residual=False"
        )
    return model
