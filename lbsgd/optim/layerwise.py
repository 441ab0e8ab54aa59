"""Scales layers by trust ratios: LARS, in both of its momentum variants, and LAMB.

LARS (You, Gitman and Ginsburg 2017) gives each layer a rate of its own, in proportion to

    lambda = eta ||w|| / (||g|| + beta ||w|| + epsilon)

with g the gradient without decay, beta the weight decay, and norms over a whole array. Two variants
go by its name, of which `chain.lars` makes either (gamma is the rate, lambda of this update):

    scaled     v <- m v + gamma lambda (g + beta w);    w <- w - v     the paper, MLPerf's reference
    unscaled   u <- m u + (g + beta w);                 w <- w - gamma lambda u

Where ||w|| or ||g|| is 0 lambda is 1, so that gamma alone is the rate, as in MLPerf's reference and
in the authors' own code (NVIDIA's Caffe). With at_zero="formula" it is what the paper's formula
says: eta / beta of a gradient of 0, and 0 of weights of 0, which so stay 0. The paper says neither
how biases and norm parameters fare (here they have no lambda and no decay, as in MLPerf's
reference), nor of any epsilon (0 by default).

Others differ. optax.lars is the scaled variant, though optax.sgd has the rate outside the buffer;
it divides by ||g + beta w||, and by default gives biases and norm parameters a trust ratio and
decay. timm's Lars has the trust ratio inside the buffer and the rate outside, which is the scaled
variant with momentum correction; a parameter without decay has no trust ratio there. optax.lamb
gives all parameters a trust ratio by default. PyTorch has neither LARS nor LAMB.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lbsgd.optim.leaves import Leaf


class TrustState(NamedTuple):
    """Holds what `scale_by_trust_ratio` keeps.

    Attributes:
      trust_ratios: of the last update, like the parameters, a scalar each; 1 where there is none.
      inner: the state of what it scales.
    """

    trust_ratios: Any
    inner: Any


class LambState(NamedTuple):
    """Holds what `scale_by_lamb` keeps.

    Attributes:
      mean, square: the moments m and v, like the parameters.
      trust_ratios: of the last update, like the parameters, a scalar each; 1 where there is none.
    """

    mean: Any
    square: Any
    trust_ratios: Any


def _wide(x: Float[Leaf, "*shape"]) -> Float[Leaf, "*shape"]:
    """Converts to float32 what is of a smaller type."""
    return x.astype(np.promote_types(x.dtype, np.float32))


def norm(x: Float[Leaf, "..."]) -> Float[Array, ""]:
    """Computes ||x|| over the whole array, in float32 at least."""
    # A sum in bfloat16 would lose what is below 1/256 of it.
    wide = _wide(x)
    # An array without elements has the norm 0, by the initial value.
    largest = jnp.max(jnp.abs(wide), initial=0.0)
    unit = jnp.where(largest > 0, largest, 1.0)
    # Squares of numbers up to 1 neither overflow nor all vanish, however large or small x is.
    return largest * jnp.sqrt(jnp.sum(jnp.square(wide / unit)))


def _one(x: Float[Leaf, "..."]) -> Float[Array, ""]:
    """Makes the ratio of an array that has none, in the type of the others."""
    return jnp.ones((), np.promote_types(x.dtype, np.float32))


def _ratio(
    above: Float[Array, ""], below: Float[Array, ""], *norms: Float[Array, ""]
) -> Float[Array, ""]:
    """Divides above by below, or gives 1 where one of the norms is 0."""
    usable = jnp.all(jnp.stack(norms) != 0)
    # Both sides of a selection are computed: none may divide by 0 where JAX looks for NaNs.
    return jnp.where(usable, above / jnp.where(usable, below, 1.0), 1.0)


def _scale(ratio: Float[Array, ""], x: Float[Leaf, "*shape"]) -> Float[Leaf, "*shape"]:
    """Multiplies an array by its ratio, rounding to its type once."""
    return (ratio * _wide(x)).astype(x.dtype)


def scale_by_trust_ratio(
    inner: optax.GradientTransformationExtraArgs,
    mask: Any,
    *,
    coefficient: float = 0.001,
    weight_decay: float = 0.0,
    epsilon: float = 0.0,
    at_zero: str = "one",
) -> optax.GradientTransformationExtraArgs:
    """Multiplies what `inner` makes of the gradient by lambda, of this update's g and w (LARS).

    With decay alone in `inner`, and momentum after, it makes the scaled variant; with momentum in
    `inner` too, the unscaled one. Without decay, momentum and epsilon the result has the norm
    eta ||w||, however the gradient is scaled.

    Args:
      inner: a transform of the gradient.
      mask: like the parameters, True where there is a trust ratio.
      coefficient: eta.
      weight_decay: beta in lambda; `inner` applies it.
      epsilon: added to the norms below.
      at_zero: lambda where ||w|| or ||g|| is 0: "one", or by the "formula" (but 1 where that would
        divide by 0).
    """

    def trust_ratio(
        g: Float[Leaf, "*shape"], w: Float[Leaf, "*shape"], scaled: bool
    ) -> Float[Array, ""]:
        if not scaled:
            return _one(w)
        of_g, of_w = norm(g), norm(w)
        # Two norms, as in the paper: that of the sum (optax.lars) is small where they cancel.
        below = of_g + weight_decay * of_w + epsilon
        # The formula has a value wherever it does not divide by 0.
        nonzero = (below,) if at_zero == "formula" else (of_g, of_w)
        return _ratio(coefficient * of_w, below, *nonzero)

    def init(params: Any) -> TrustState:
        return TrustState(jax.tree.map(_one, params), inner.init(params))

    def update(
        gradient: Any, state: TrustState, params: Any, **keywords: Any
    ) -> tuple[Any, TrustState]:
        # Of the gradient that comes in, not of `inner`'s: decay and momentum are not in ||g||.
        ratios = jax.tree.map(trust_ratio, gradient, params, mask)
        direction, of_inner = inner.update(gradient, state.inner, params, **keywords)
        # The ratios are in the state to be looked at: no later update depends on them.
        return jax.tree.map(_scale, ratios, direction), TrustState(ratios, of_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _unbiased(decay: float, updates: Float[Array, ""]) -> Float[Array, ""]:
    """Computes 1 - decay^updates, by which a moment that started at 0 is too small."""
    # By expm1, since 1 - 0.999 in float32 is off by 5e-5 of itself; math.log(0) would raise.
    return -jnp.expm1(updates * (math.log(decay) if decay else -math.inf))


def _adam_direction(
    mean: Float[Leaf, "*shape"], square: Float[Leaf, "*shape"], epsilon: float
) -> Float[Leaf, "*shape"]:
    """Divides a mean gradient by the root of the mean square, element by element."""
    # Epsilon past the root, as in the paper: under it, it would count where gradients are small.
    return mean / (jnp.sqrt(square) + epsilon)


def scale_by_lamb(
    mask: Any,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    norm_clip: tuple[float, ...] = (),
) -> optax.GradientTransformationExtraArgs:
    """Makes the direction of LAMB (You et al. 2020, Algorithm 2), its learning rate left out.

        m <- b1 m + (1 - b1) g;       v <- b2 v + (1 - b2) g^2
        u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon) + lambda w
        result = phi(||w||) / ||u|| u

    The ratio is 1 where ||w|| or ||u|| is 0. Its t, from 1, is the keyword `update_index` plus one.
    Squares of gradients beyond 1e19 overflow float32.

    Args:
      mask: like the parameters, True where there is a trust ratio and decay.
      weight_decay: lambda.
      norm_clip: () for phi(z) = z, or (least, greatest) for phi(z) = min(max(z, least), greatest).
    """

    def init(params: Any) -> LambState:
        # Two trees of zeros, and not one twice: a step that is given the state's memory for the
        # next one cannot be given an array twice.
        mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return LambState(mean, square, jax.tree.map(_one, params))

    def trust_ratio(
        u: Float[Leaf, "*shape"], w: Float[Leaf, "*shape"], scaled: bool
    ) -> Float[Array, ""]:
        if not scaled:
            return _one(w)
        of_u, of_w = norm(u), norm(w)
        phi = jnp.clip(of_w, *norm_clip) if norm_clip else of_w
        # By ||w|| itself, for phi(0) is not 0 if it clips from below.
        return _ratio(phi, of_u, of_u, of_w)

    def update(
        gradient: Any, state: LambState, params: Any, *, update_index: ArrayLike, **_: Any
    ) -> tuple[Any, LambState]:
        # From 1, for at 0 updates both corrections would divide by 0; float32 is exact up to 2^24.
        t = jnp.asarray(update_index).astype(jnp.result_type(float)) + 1.0
        # Inverses, so that arrays are multiplied, and only scalars divided.
        to_mean, to_square = 1.0 / _unbiased(beta1, t), 1.0 / _unbiased(beta2, t)

        def direction(m: Any, v: Any, w: Any, scaled: bool) -> Any:
            r = _adam_direction(to_mean.astype(m.dtype) * m, to_square.astype(v.dtype) * v, epsilon)
            # Decay within the norm ||u||, as in the paper: the ratio bounds both together.
            return r + weight_decay * w if scaled else r

        mean = jax.tree.map(lambda m, g: beta1 * m + (1.0 - beta1) * g, state.mean, gradient)
        square = jax.tree.map(
            lambda v, g: beta2 * v + (1.0 - beta2) * jnp.square(g), state.square, gradient
        )
        u = jax.tree.map(direction, mean, square, params, mask)
        ratios = jax.tree.map(trust_ratio, u, params, mask)
        return jax.tree.map(_scale, ratios, u), LambState(mean, square, ratios)

    return optax.GradientTransformationExtraArgs(init, update)
