"""Uses trained networks: loads them, evaluates them on any images, predicts.

`lbsgd.load(run)` gives a `Model`; docs/use.md shows what it can do.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbsgd.use.evaluation import Evaluated, evaluate
    from lbsgd.use.loading import load
    from lbsgd.use.model import Model, Predicted, Prediction
    from lbsgd.use.reading import find_images

_MODULES = {
    "Evaluated": "evaluation",
    "Model": "model",
    "Predicted": "model",
    "Prediction": "model",
    "evaluate": "evaluation",
    "find_images": "reading",
    "load": "loading",
}

__all__ = ["Evaluated", "Model", "Predicted", "Prediction", "evaluate", "find_images", "load"]


def __getattr__(name: str) -> Any:
    """Imports them when they are asked for: the commands check their arguments before that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Lists them too, before they are imported."""
    return sorted({*globals(), *__all__})
