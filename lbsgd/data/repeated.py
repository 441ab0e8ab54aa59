"""Batches made on the devices and used again and again: nothing is loaded, to measure the rest."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from lbsgd.data.pipeline import Batch


class RepeatedBatches:
    """Iterates over batches that are on the devices already, with the interface of `Prefetch`."""

    ready = True

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Does nothing: no thread is running."""


def random_batch(shapes: dict[str, jax.ShapeDtypeStruct], classes: int, seed: int) -> Batch:
    """Makes a batch of random images and labels on the devices that hold it; other arrays are 0.

    Args:
      shapes: of the batch's arrays, with their shardings.
      classes: how many classes the labels have.
    """

    def make() -> Batch:
        keys = dict(zip(shapes, jax.random.split(jax.random.key(seed), len(shapes))))
        most = {"image": 256, "label": classes}
        return {
            key: jax.random.randint(keys[key], shape.shape, 0, most.get(key, 1), jnp.int32).astype(
                shape.dtype
            )
            for key, shape in shapes.items()
        }

    return jax.jit(make, out_shardings={k: s.sharding for k, s in shapes.items()})()


def repeat(batch: Batch, count: int, sharding: NamedSharding) -> Batch:
    """Stacks a batch with itself, as that of so many updates."""
    stack = jax.jit(
        lambda batch: jax.tree.map(lambda x: jnp.stack([x] * count), batch), out_shardings=sharding
    )
    stacked: Batch = stack(batch)
    return stacked
