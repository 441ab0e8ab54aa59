"""Normalises: batch norm whose statistics belong to a worker or a few, group norm, and none.

Batch norm never updates a running average. In training it leaves the moments of its own batch in
the collection `batch_stats`; the step averages them over all workers and moves the running
averages once per update, so these do not depend on lanes, devices or accumulation. The others have
no such collection: an example's output does not depend on its neighbours.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from lbsgd.models.roles import Role, with_role

# Every sixteenth example gives the shift of the sums: at least a sixteenth of the values.
_SPARSE = 16


class Moments(NamedTuple):
    """Holds the moments of a batch, and what they were computed of.

    Attributes:
      mean, variance: of the values x of each feature; the variance is biased.
      centred: x - s, with s near the mean, in the type of the moments.
      rest: the mean of `centred`, which is mean - s.
      shift: s itself.
    """

    mean: Float[Array, " features"]
    variance: Float[Array, " features"]
    centred: Float[Array, "*batch features"]
    rest: Float[Array, " features"]
    shift: Float[Array, " features"]


def moments(
    x: Float[Array, "*batch features"], axis_names: tuple[str, ...] = (), dtype: Any = None
) -> Moments:
    """Computes mean and biased variance of `x` over all its axes but the last.

    One pass over x, and one over a sixteenth of it: the sums are taken of x - s, with s the mean
    of every sixteenth example. No part of x that is 1/f of it has a mean further from the whole
    one than sqrt(f - 1) deviations, so at most 15/16 of E[(x - s)^2] cancels, wherever the mean
    lies. Of m values, in arithmetic of precision eps, the variance has a relative error of at most
    24 (m + 4) eps were they summed one after the other, and s exactly; by XLA's sums in float32 it
    stays below 1e-4 where |mean| / std is at most 10,000.

    Args:
      x: `[n, ..., features]`.
      axis_names: mapped axes over which the batch extends; they share s, and are reduced twice.
      dtype: of the moments and of their arithmetic; by default that of x.
    """
    axes, dtype = tuple(range(x.ndim - 1)), dtype or x.dtype
    shift = shift_of(x, dtype)
    if axis_names:
        shift = lax.pmean(shift, axis_names)
    centred = x.astype(dtype) - along(shift, x)
    rest, second = jnp.mean(centred, axes), jnp.mean(jnp.square(centred), axes)
    if axis_names:
        rest, second = lax.pmean((rest, second), axis_names)
    # Rounding can leave a tiny negative variance where all inputs are equal.
    variance = jnp.maximum(second - jnp.square(rest), 0)
    return Moments(rest + shift, variance, centred, rest, shift)


def along(
    features: Float[Array | np.ndarray, " features"], x: Float[Array, "*n _"]
) -> Float[Array, "*ones _"]:
    """Gives a number of each feature the rank of x, whose last axis is the features."""
    return jnp.expand_dims(features, tuple(range(x.ndim - 1)))


def shift_of(x: Float[Array, "*batch features"], dtype: Any) -> Float[Array, " features"]:
    """Computes the mean of every sixteenth example, which no gradient passes by."""
    # Sliced before it is cast: a cast of all of x, read in three places, may be kept in memory
    # beside x, as XLA for GPUs seems to do by the sizes that its kernels write.
    return jnp.mean(lax.stop_gradient(x[::_SPARSE]).astype(dtype), tuple(range(x.ndim - 1)))


def _by_layer(f: Callable[[Any, Any], Any], stats: Any, running: Any, of_step: Any) -> Any:
    """Maps f over pairs of {"mean", "var"} nodes: a layer's moments and its running averages."""

    def is_layer(node: Any) -> bool:
        return isinstance(node, Mapping) and set(node) == {"mean", "var"}

    def at(s: Any, r: Any, moments: Any) -> Any:
        return f(s, r) if is_layer(s) and moments["mean"] else s

    return jax.tree.map(at, stats, running, of_step, is_leaf=is_layer)


def add_distance(stats: Any, running: Any, of_step: Any) -> Any:
    """Adds to each variance the squared distance of its mean from the running mean r.

    var(mean) over workers is E[(mean - r)^2] - (E[mean] - r)^2 for any r. This is the first term,
    to be averaged along with the variances; `subtract_distance` takes the second off the average.
    No more bytes are reduced than without. With r near the means nothing cancels; where it is not
    there yet, the error is eps (mean - r)^2, and is forgotten with r: after t updates both are
    0.9^t of what they were.

    Args:
      of_step: like the statistics, True where they are moments; others stay as they are.
    """
    return _by_layer(
        lambda s, r: {"mean": s["mean"], "var": s["var"] + jnp.square(s["mean"] - r["mean"])},
        stats,
        running,
        of_step,
    )


def subtract_distance(stats: Any, running: Any, of_step: Any) -> Any:
    """Makes averages of `add_distance`'s statistics mean(var) + var(mean)."""
    return _by_layer(
        lambda s, r: {"mean": s["mean"], "var": s["var"] - jnp.square(s["mean"] - r["mean"])},
        stats,
        running,
        of_step,
    )


def around_one(std: float) -> nn.initializers.Initializer:
    """Makes an initialiser that draws scales from N(1, std^2); all are 1 without a deviation."""
    if not std:
        return nn.initializers.ones
    normal = nn.initializers.normal(std)
    return lambda *args: 1 + normal(*args)


class Joined(NamedTuple):
    """Says how batch norm is computed as one function with its neighbours, in training.

    Attributes:
      features: that are normalised.
      compute: (input, scale, offset, epsilon) -> output, mean and biased variance; its input and
        output may be those of the neighbours. The type of the output is that of the input.
    """

    features: int
    compute: Callable[[Any, Any, Any, float], tuple[Any, Any, Any]]


class BatchNorm(nn.Module):
    """Normalises by batch (Ioffe and Szegedy 2015), over all axes but the last.

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
    def __call__(
        self, x: Float[Array, "*shape"], *, train: bool, joined: Joined | None = None
    ) -> Float[Array, "..."]:
        """Normalises `x`, whose last axis is the features.

        Args:
          joined: in training only, and not with `axis_names`.
        """
        shape = (joined.features if joined else x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        scale_init = with_role(Role.NORM_SCALE, self.scale_init)
        offset_init = with_role(Role.NORM_OFFSET, nn.initializers.zeros)
        scale = self.param("scale", scale_init, shape, self.param_dtype)
        offset = self.param("offset", offset_init, shape, self.param_dtype)

        if joined:
            y, *left = joined.compute(x, scale, offset, self.epsilon)
            self._leave(mean, var, *lax.stop_gradient(left))
            return y
        if train:
            found = moments(x, self.axis_names, self.param_dtype)
            self._leave(mean, var, found.mean, found.variance)
        else:
            centred = x.astype(self.param_dtype) - along(mean.value, x)
            none = jnp.zeros_like(mean.value)
            found = Moments(mean.value, var.value, centred, none, mean.value)
        factor = scale * lax.rsqrt(found.variance + self.epsilon)
        # (centred - rest) * factor + offset. So written, its gradient needs two sums over the
        # batch, of dy and of dy * centred, and not a third for the mean.
        constant = offset - found.rest * factor
        y = found.centred * along(factor, x) + along(constant, x)
        return y.astype(self.dtype)

    def _leave(self, mean: Any, var: Any, *found: Float[Array, " features"]) -> None:
        """Leaves the moments of this batch where the collection is mutable."""
        if self.is_mutable_collection("batch_stats"):
            mean.value, var.value = found


class GroupNorm(nn.Module):
    """Normalises groups of channels of each example on its own (Wu and He 2018).

    By `flax.linen.GroupNorm`. The channels are divided into as many groups as can be, up to 32, of
    two or more: 32 groups of 64 channels or 256, 24 of 48, 8 of 16.

    Attributes:
      epsilon: added to the variance.
      dtype: of the output; the moments and the normalisation are in `param_dtype`.
      param_dtype: of scale and offset.
      scale_init: of the scale, gamma.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @staticmethod
    def groups(features: int) -> int:
        """Counts the groups that so many channels are divided into."""
        most = max(1, min(32, features // 2))
        return next(groups for groups in range(most, 0, -1) if features % groups == 0)

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        """Normalises `x`, `[n, ..., features]`, in training and evaluation alike."""
        norm = nn.GroupNorm(
            self.groups(x.shape[-1]),
            epsilon=self.epsilon,
            dtype=self.param_dtype,
            param_dtype=self.param_dtype,
            scale_init=with_role(Role.NORM_SCALE, self.scale_init),
            bias_init=with_role(Role.NORM_OFFSET, nn.initializers.zeros),
            use_fast_variance=False,  # E[x^2] - E[x]^2 would cancel
            force_float32_reductions=False,  # nor float64: they are in param_dtype
            name="norm",
        )
        return norm(x.astype(self.param_dtype)).astype(self.dtype)


class NoNorm(nn.Module):
    """Stands in the place of a normalisation: gives its input, with neither scale nor offset."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        """Gives `x` back."""
        return x
