"""Exports the network of a run into a folder, which appears when all of it is checked."""

import argparse
import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lbsgd.data.source import Splits
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.system.command_line import complain
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import expand_home
from lbsgd.use.arguments import wanted_of
from lbsgd.use.export.arrays import FLAX, OWN, TORCHVISION
from lbsgd.use.export.card import Exported, model_card
from lbsgd.use.export.checking import check, choose_images
from lbsgd.use.export.formats import Format, Options
from lbsgd.use.export.onnx_graph import ONNX
from lbsgd.use.export.stablehlo import STABLEHLO
from lbsgd.use.loading import Wanted, load_stored
from lbsgd.use.model import Model

FORMATS: Mapping[str, Format] = {
    "torchvision": TORCHVISION,
    "flax": FLAX,
    "safetensors": OWN,
    "stablehlo": STABLEHLO,
    "onnx": ONNX,
}
# What needs nothing that lbsgd does not.
DEFAULT = ("torchvision", "flax", "safetensors", "stablehlo")


def export(args: argparse.Namespace, keys: Mapping[str, Any]) -> None:
    """Does what `lbsgd export` was asked for, and says what it does.

    Args:
      args: as the command has them.
      keys: of the config, set for this.

    Raises:
      ConfigError: the run, a format or the folder is not as it must be.
      FailedError: what was written differs from the network, when it is read back.
    """
    out = expand_home(args.out).absolute()
    _check_empty(out)
    wanted = Wanted(**wanted_of(args), devices=1, keys=keys)
    stored, model = load_stored(args.run, wanted, complain)
    kinds = _possible(model, args.format)
    data = _open_data(model)
    images = choose_images(model, args.images, data)
    options = Options(args.keep_float64, args.platforms)
    print(f"checked on {images.source}")
    with _appearing(out) as folder:
        found = []
        for name in kinds:
            kind = FORMATS[name]
            kind.write(model, folder / kind.file, options)
            found.append(Exported(name, kind.file, check(kind, folder / kind.file, model, images)))
            print(_line(folder, found[-1]))
        _write_text(folder / "interface.json", json.dumps(model.interface.to_json(), indent=2))
        card = model_card(stored, model, wanted, data, found, images.source, args.license)
        _write_text(folder / "README.md", card)
    print(f"{out}: {', '.join(FORMATS[name].file for name in kinds)}, interface.json, README.md")


def _open_data(model: Model) -> Splits | None:
    """Opens the data of the run, or says why they cannot be had."""
    try:
        return build_sources(model.config.data, model.config.seed)
    except (ConfigError, OSError) as error:
        complain(f"without the data of the run: {error}")
        return None


def _line(folder: pathlib.Path, one: Exported) -> str:
    size = (folder / one.file).stat().st_size / 1e6
    apart, most = one.difference
    return f"{one.file:<20}{size:>9.1f} MB  differs by {apart:.1e}, rounding explains {most:.1e}"


def _possible(model: Model, asked: Sequence[str] | None) -> list[str]:
    """Selects formats; says which of those that nobody asked for by name the network has not.

    Raises:
      ConfigError: one that was asked for is impossible.
    """
    found = []
    for name in asked or DEFAULT:
        refusal = FORMATS[name].refusal(model)
        if refusal and asked:
            raise ConfigError(f"--format {name}: {refusal}")
        if refusal:
            complain(f"without {name}: {refusal}")
        else:
            found.append(name)
    return found


def _check_empty(out: pathlib.Path) -> None:
    """Raises ConfigError where a folder is not to be written."""
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise ConfigError(f"{out} cannot be read ({error.strerror or error})") from error
    if taken:
        raise ConfigError(f"{out} is there already, and not an empty folder; choose another OUT")


@contextlib.contextmanager
def _appearing(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder that becomes `out` at the end, or is removed where something fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True
        ) as temporary:
            folder = pathlib.Path(temporary, out.name)
            folder.mkdir()
            yield folder
            for path in folder.iterdir():
                _sync(path)
            os.replace(folder, out)  # over an empty one
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror or error}); make room there, or choose "
            "another OUT"
        ) from error


def _sync(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_text(path: pathlib.Path, text: str) -> None:
    path.write_text(f"{text.rstrip()}\n", encoding="utf-8")
