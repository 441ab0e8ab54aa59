"""Loops over accumulation steps and lanes by `lax.scan`, in forms that each platform runs fast."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from lbsgd.step.cpu import cpu_forms


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, platform: str
) -> tuple[Any, Any]:
    """Runs `lax.scan`, but without a loop around a single step, and not slow on a CPU.

    Args:
      f: (carry, step) -> (carry, output of the step).
      steps: a tree of arrays `[A, ...]`, of which f gets one after the other.
      platform: that it is to be compiled for: "cpu", "gpu" or "tpu".

    Returns:
      the last carry, and the outputs `[A, ...]`.
    """
    f = fast_on(platform, f)
    # A loop of one step would keep XLA from fusing across its borders, and its carry alive.
    if jax.tree.leaves(steps)[0].shape[0] > 1:
        return lax.scan(f, carry, steps)
    carry, output = f(carry, jax.tree.map(lambda x: x[0], steps))
    return carry, jax.tree.map(lambda x: x[None], output)


def fast_on(platform: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """Gives f in the form that a platform runs fastest; not to be differentiated any more."""
    # Compilers for GPUs and TPUs choose forms and layouts themselves, inside of loops too.
    return cpu_forms(f) if platform == "cpu" else f
