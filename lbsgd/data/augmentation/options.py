"""Checks the options of lbsgd's own augmentation."""

from typing import Any

from lbsgd.config.keys import MOST_OF_ANY
from lbsgd.data.source import format_shape
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import is_number, short_repr


def check_whole(option: str, value: Any, least: int, most: int) -> None:
    """Raises ConfigError where an option is no whole number within a range."""
    if type(value) is not int or not least <= value <= most:
        raise _wrong(option, f"a whole number from {least} to {most}", value)


def check_number(option: str, value: Any, least: float, most: float = MOST_OF_ANY) -> None:
    """Raises ConfigError where an option is no number within a range."""
    if not is_number(value) or not least <= value <= most:
        raise _wrong(option, f"a number from {least:g} to {most:g}", value)


def check_channels(name: str, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError where images have other than 1 or 3 channels."""
    if image_shape[2] not in (1, 3):
        raise ConfigError(
            f"data.augment={name!r} is for images of 1 or 3 channels, these are "
            f"{format_shape(image_shape)}"
        )


def _wrong(option: str, wanted: str, value: Any) -> ConfigError:
    return ConfigError(f"data.augment_options.{option} must be {wanted}, not {short_repr(value)}")
