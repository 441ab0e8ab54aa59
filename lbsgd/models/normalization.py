"""Batch norm whose statistics belong to one worker, or to a group of workers.

The module never updates a running average. In training it leaves the moments of its own batch in
the collection `batch_stats`; the step averages them over all workers and moves the running
averages once per update, so these do not depend on lanes, devices or accumulation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from lbsgd.models.roles import Role, with_role


def moments(
    x: jax.Array, shift: jax.Array, axis_names: tuple[str, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of `x` over all its axes but the last, each `[features]`.

    One pass over x. Sums are taken of x - shift, for any constant shift: near the mean it spares
    the variance the cancellation of E[x^2] - E[x]^2.

    Args:
      x: `[..., features]`.
      shift: `[features]`.
      axis_names: mapped axes over which the batch extends.
    """
    centred = x - jnp.expand_dims(lax.stop_gradient(shift), range(x.ndim - 1))
    axes = tuple(range(x.ndim - 1))
    first, second = jnp.mean(centred, axes), jnp.mean(jnp.square(centred), axes)
    if axis_names:
        first, second = lax.pmean((first, second), axis_names)
    # Rounding can leave a tiny negative variance where all inputs are equal.
    return first + shift, jnp.maximum(second - jnp.square(first), 0)


def _by_layer(f: Callable[[Any, Any], Any], stats: Any, running: Any) -> Any:
    """Maps f over pairs of {"mean", "var"} nodes."""

    def is_layer(node: Any) -> bool:
        return set(node) == {"mean", "var"}

    return jax.tree.map(f, stats, running, is_leaf=is_layer)


def add_distance(stats: Any, running: Any) -> Any:
    """Adds to each variance the squared distance of its mean from the running mean r.

    var(mean) over workers is E[(mean - r)^2] - (E[mean] - r)^2 for any r. This is the first term,
    to be averaged along with the variances; `subtract_distance` takes the second off the average.
    No more bytes are reduced than without, and with r near the means nothing cancels.
    """
    return _by_layer(
        lambda s, r: {"mean": s["mean"], "var": s["var"] + jnp.square(s["mean"] - r["mean"])},
        stats,
        running,
    )


def subtract_distance(stats: Any, running: Any) -> Any:
    """Makes averages of `add_distance`'s statistics mean(var) + var(mean)."""
    return _by_layer(
        lambda s, r: {"mean": s["mean"], "var": s["var"] - jnp.square(s["mean"] - r["mean"])},
        stats,
        running,
    )


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) over all axes but the last.

    In training (`train=True`) it normalises by the moments of the examples it is given and, where
    `batch_stats` is mutable, leaves them there: after `apply` the collection holds the mean and
    the biased variance of this batch, not a running average. Otherwise it normalises by the
    running averages in `batch_stats`.

    Attributes:
      epsilon: added to the variance.
      dtype: of the output; the moments and the normalisation are in `param_dtype`.
      param_dtype: of scale, offset and statistics.
      scale_init: of the scale, gamma.
      axis_names: mapped axes that are one batch (synced batch norm); none for per-worker.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis_names: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x`, `[..., features]`."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        scale_init = with_role(Role.NORM_SCALE, self.scale_init)
        offset_init = with_role(Role.NORM_OFFSET, nn.initializers.zeros)
        scale = self.param("scale", scale_init, shape, self.param_dtype)
        offset = self.param("offset", offset_init, shape, self.param_dtype)

        x = x.astype(self.param_dtype)
        centre, spread = mean.value, var.value
        if train:
            centre, spread = moments(x, mean.value, self.axis_names)
            if self.is_mutable_collection("batch_stats"):
                mean.value, var.value = centre, spread
        factor = scale * lax.rsqrt(spread + self.epsilon)
        leading = range(x.ndim - 1)
        y = (x - jnp.expand_dims(centre, leading)) * jnp.expand_dims(factor, leading)
        return (y + jnp.expand_dims(offset, leading)).astype(self.dtype)
