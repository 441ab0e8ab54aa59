"""The door of augmentation: what `data.augment` names, lbsgd's own or anyone's, and its checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from lbsgd.config.dotted import Named, is_dotted, load
from lbsgd.data.augmentation.catalogue import OWN
from lbsgd.data.source import format_shape
from lbsgd.system.text import short_repr

KEY = "data.augment"


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Calls what was named, and checks what it returns.

    Attributes:
      named: where it is defined.
      function: (images uint8 `[N, h, w, c]`, epochs `[N]`, examples `[N]`) -> images.
      image_shape: `(h, w, c)`.
    """

    named: Named
    function: Callable[..., Any]
    image_shape: tuple[int, int, int]

    def __call__(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> None:
        """Augments images uint8 `[N, h, w, c]` in place; epochs and examples are `[N]`.

        Raises:
          ConfigError: an error in it, or it returned something else than such images.
        """
        with self.named.guard():
            found = self.function(images, epochs, examples)
        if not isinstance(found, np.ndarray):
            raise self.named.error(f"returned {short_repr(found)}, not the images")
        if (found.dtype, found.shape) != (images.dtype, images.shape):
            raise self.named.error(f"returned {_shown(found)}, not images of {_shown(images)}")
        if found is not images:
            images[:] = found

    @property
    def resizes(self) -> bool:
        """Tells whether it says how large images are in an epoch."""
        return callable(self._size)

    @property
    def _size(self) -> Any:
        return getattr(self.function, "image_size", None)

    def image_size(self, epoch: int) -> tuple[int, int]:
        """Returns `(h, w)` of the images of an epoch, counted from 0.

        Raises:
          ConfigError: an error in it, or no size, or one that is larger than the images are.
        """
        if not self.resizes:
            return self.image_shape[:2]
        with self.named.guard():
            found = self._size(epoch)
        if not _is_size(found, self.image_shape):
            most = format_shape(self.image_shape[:2])
            raise self.named.error(
                f"has an image_size({epoch}) of {short_repr(found)}, which must be a height and a "
                f"width, whole numbers of at most {most}"
            )
        height, width = found
        return int(height), int(width)


def build_augmentation(
    data: ml_collections.ConfigDict, seed: int, image_shape: tuple[int, int, int]
) -> Augmentation | None:
    """Makes the augmentation that a config's `data` name; None where they name none.

    Raises:
      ConfigError: there is no such name, or what it stands for fails.
    """
    if not data.augment:
        return None
    named = load(KEY, OWN.get(data.augment, data.augment))
    if not is_dotted(data.augment):
        named = named._replace(name=data.augment)
    function = named.call(data.augment_options.to_dict(), seed=seed, image_shape=image_shape)
    if not callable(function):
        raise named.error(f"gave {short_repr(function)}, not a function of images")
    augmentation = Augmentation(named, function, image_shape)
    if is_dotted(data.augment):
        _try(augmentation)
    return augmentation


def _try(augmentation: Augmentation) -> None:
    """Tries an augmentation with two images, so that mistakes show before anything is compiled."""
    images = np.zeros((2, *augmentation.image_shape), np.uint8)
    augmentation(images, np.zeros(2, np.int64), np.arange(2))


def _is_size(found: Any, image_shape: tuple[int, int, int]) -> bool:
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        return False
    return all(
        isinstance(side, (int, np.integer)) and not isinstance(side, bool) and 0 < side <= most
        for side, most in zip(found, image_shape)
    )


def _shown(array: np.ndarray) -> str:
    return f"{array.dtype} {format_shape(array.shape)}"
