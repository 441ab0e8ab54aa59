"""Reads images to predict: files or pixels, cropped and resized as evaluation does it."""

import glob
import itertools
import pathlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from lbsgd.data.images import pixels as conversion
from lbsgd.data.images.decode import CorruptError, decode
from lbsgd.data.interface import Interface
from lbsgd.data.source import shape_of
from lbsgd.data.sources.files import EXTENSIONS, is_left_out
from lbsgd.data.sources.folder import read_file
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import expand_home
from lbsgd.system.limits import num_cores
from lbsgd.system.text import printable

# A path of a file, pixels, uint8 `[h, w, c]` or grey `[h, w]`, or an image that Pillow has opened.
Image = str | pathlib.Path | np.ndarray | PIL.Image.Image

# Pillow loads an image when first asked for its pixels, which two threads must not do at once.
_LOADING = threading.Lock()
_NO_DRAW = np.empty(0)
_KINDS = "an image is a path, an array uint8 [h, w, c] or an image of Pillow"


class Read(NamedTuple):
    """Holds an image as the network takes it.

    Attributes:
      name: its path, or "image 3" of what is no file, counted from 0.
      pixels: uint8, of the network's input shape; None where it cannot be read.
      problem: why it cannot; "" where it can.
    """

    name: str
    pixels: np.ndarray | None = None
    problem: str = ""


def each_image(images: Any) -> Iterator[Image]:
    """Yields images one by one: one alone, those of an array `[n, h, w, c]`, or of any iterable.

    Raises:
      ConfigError: it is, or holds, what is no image.
    """
    stacked = isinstance(images, np.ndarray) and images.ndim > 3
    if isinstance(images, Image) and not stacked:
        images = [images]
    elif isinstance(images, (bytes, dict)) or not isinstance(images, Iterable):
        raise ConfigError(f"{_KINDS}, or several of them, not {type(images).__name__}")
    for number, image in enumerate(images):
        if not isinstance(image, Image):
            raise ConfigError(f"image {number}: {_KINDS}, not {type(image).__name__}")
        yield image


def read_images(
    images: Iterable[Image], interface: Interface, batch_size: int, threads: int = 0
) -> Iterator[list[Read]]:
    """Reads images in batches; the next one is read while one is used.

    Args:
      threads: how many read; 0 for one per core.
    """
    numbered = enumerate(images)
    with ThreadPoolExecutor(threads or num_cores(), "lbsgd-read") as pool:
        waiting = None
        while taken := list(itertools.islice(numbered, batch_size)):
            loading = [pool.submit(read_image, image, i, interface) for i, image in taken]
            if waiting:
                yield [one.result() for one in waiting]
            waiting = loading
        if waiting:
            yield [one.result() for one in waiting]


def read_image(image: Image, number: int, interface: Interface) -> Read:
    """Reads an image, and says what is wrong with one that cannot be."""
    file = isinstance(image, (str, pathlib.Path))
    name = printable(str(image)) if file else f"image {number}"
    try:
        return Read(name, _view(_content(image), interface))
    except CorruptError as error:
        return Read(name, problem=str(error))


def _content(image: Image) -> np.ndarray | bytes:
    """Gives pixels, uint8 `[h, w, c]`, or the bytes of a file."""
    if isinstance(image, PIL.Image.Image):
        return _converted(image)
    return _checked(image) if isinstance(image, np.ndarray) else read_file(str(image))


def _converted(image: PIL.Image.Image) -> np.ndarray:
    """Converts what Pillow has opened to RGB, as files are."""
    try:
        with _LOADING:
            own = image.copy()
        return conversion.to_rgb(own, b"")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise CorruptError(str(error)) from error


def _checked(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not pixels.size:
        raise CorruptError(f"pixels must be uint8 [h, w, c], not {pixels.dtype} {pixels.shape}")
    return pixels


def _view(image: np.ndarray | bytes, interface: Interface) -> np.ndarray:
    """Crops and resizes as evaluation does; grey pixels become those of three channels, and back.

    Raises:
      CorruptError: it cannot be decoded, or has not the shape that the network takes.
    """
    wanted = interface.image_shape
    if wanted[2] == 1 and isinstance(image, bytes):
        image = decode(image)
    if isinstance(image, np.ndarray) and (image.shape[2], wanted[2]) == (1, 3):
        image = np.repeat(image, 3, axis=2)
    elif isinstance(image, np.ndarray) and (image.shape[2], wanted[2]) == (3, 1):
        image = grey(image)
    misfit = interface.misfit(shape_of(image))
    if misfit:
        raise CorruptError(f"it has {misfit}")
    out = np.empty(wanted, np.uint8)
    interface.view()(image, _NO_DRAW, out)
    return out


def grey(pixels: np.ndarray) -> np.ndarray:
    """Takes one channel of an image file, which is decoded to red, green and blue.

    Raises:
      CorruptError: it has colours.
    """
    one = pixels[..., :1]
    if not (pixels == one).all():
        raise CorruptError("it has colours, and the network takes grey images")
    return one


def find_images(words: Iterable[str]) -> list[str]:
    """Finds image files by what people write: files, folders and patterns.

    Of a folder these are the images at any depth, by name; a file is taken whatever its name is.

    Raises:
      ConfigError: a folder has no images, or nothing is like a pattern.
    """
    return list(itertools.chain.from_iterable(map(_find, words)))


def _find(word: str) -> list[str]:
    path = expand_home(word)
    if path.is_dir():
        # What systems create everywhere is left out, as when a folder is trained on.
        found = [p for p in sorted(path.rglob("*")) if p.name.lower().endswith(EXTENSIONS)]
        images = [str(p) for p in found if not any(map(is_left_out, p.relative_to(path).parts))]
        if not images:
            raise ConfigError(
                f"{word} holds no images; what is read ends in {' '.join(EXTENSIONS)}"
            )
        return images
    if path.exists() or not glob.has_magic(word):
        return [str(path)]
    images = sorted(glob.glob(str(path), recursive=True))
    if not images:
        raise ConfigError(f"there is nothing like {word!r}")
    return images
