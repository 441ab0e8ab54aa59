"""Configs of a few keys, for the tests of what checks them."""

from ml_collections import ConfigDict


def config_with(**changes) -> ConfigDict:
    """A config of these keys alone (dots as in `**{"data.flip": True}`), of any type."""
    nested: dict = {}
    for key, value in changes.items():
        *groups, leaf = key.split(".")
        part = nested
        for group in groups:
            part = part.setdefault(group, {})
        part[leaf] = value
    return ConfigDict(nested)
