"""Optimizes: optax transformations, with decay and trust ratios by the roles of the parameters.

`from lbsgd.optim import sgd, lars, lamb` are ordinary optax transformations, for any training loop;
so is `scale_by_natural_gradient`, which is given statistics of curvature.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbsgd.optim.library import lamb, lars, scale_by_natural_gradient, sgd

__all__ = ["lamb", "lars", "scale_by_natural_gradient", "sgd"]


def __getattr__(name: str) -> Any:
    """Imports them when they are asked for: who reads a config needs no JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lbsgd.optim import library

    return getattr(library, name)


def __dir__() -> list[str]:
    """Lists them too, before they are imported."""
    return sorted({*globals(), *__all__})
