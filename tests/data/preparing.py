"""What tests of preparations do with them."""

import pathlib

from lbsgd.data.command import main
from lbsgd.run.config import default_config


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def data_config(root: pathlib.Path):
    config = default_config().data
    config.dir, config.crop = str(root), "inception"
    return config


def files(root: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
