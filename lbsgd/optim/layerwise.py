"""Scales layers by trust ratios: LARS, in both of its momentum variants, and LAMB.

LARS (You, Gitman and Ginsburg 2017) gives each layer a rate of its own, in proportion to

    lambda = eta ||w|| / (||g|| + beta ||w|| + epsilon)

with g the gradient without decay, beta the weight decay, and norms over a whole array. Two variants
go by its name, of which `library.lars` makes either (gamma is the rate, lambda of this update):

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

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lbsgd.optim.leaves import Leaf, in_type_of, type_in_jax
from lbsgd.optim.masks import Mask, flags, needed


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


def _wide_type(x: Float[Leaf, "..."]) -> np.dtype[Any]:
    """Returns the type of norms and ratios: float32 at least."""
    return np.promote_types(type_in_jax(x), np.float32)


def _wide(x: Float[Leaf, "*shape"]) -> Float[Leaf, "*shape"]:
    """Converts to float32 what is of a smaller type."""
    return x.astype(_wide_type(x))


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
    return jnp.ones((), _wide_type(x))


def _ratio(
    above: Float[Array, ""], below: Float[Array, ""], *norms: Float[Array, ""]
) -> Float[Array, ""]:
    """Divides above by below, or gives 1 where one of the norms is 0."""
    usable = jnp.all(jnp.stack(norms) != 0)
    # Both sides of a selection are computed: none may divide by 0 where JAX looks for NaNs.
    return jnp.where(usable, above / jnp.where(usable, below, 1.0), 1.0)


def _scale(ratio: Float[Array, ""], x: Float[Leaf, "*shape"]) -> Float[Leaf, "*shape"]:
    """Multiplies an array by its ratio, rounding to its type once."""
    return (ratio * _wide(x)).astype(type_in_jax(x))


def _lars_ratio(
    g: Float[Leaf, "*shape"],
    w: Float[Leaf, "*shape"],
    scaled: bool,
    *,
    coefficient: ArrayLike,
    weight_decay: ArrayLike,
    epsilon: ArrayLike,
    at_zero: str,
) -> Float[Array, ""]:
    """Computes lambda of an array, or 1 if it has none."""
    if not scaled:
        return _one(w)
    of_g, of_w = norm(g), norm(w)
    # Two norms, as in the paper: that of the sum (optax.lars) is small where they cancel.
    below = of_g + in_type_of(of_w, weight_decay) * of_w + in_type_of(of_w, epsilon)
    # The formula has a value wherever it does not divide by 0.
    nonzero = (below,) if at_zero == "formula" else (of_g, of_w)
    return _ratio(in_type_of(of_w, coefficient) * of_w, below, *nonzero)


def scale_by_trust_ratio(
    inner: optax.GradientTransformationExtraArgs,
    mask: Mask,
    *,
    decay: bool = False,
    at_zero: str = "one",
) -> optax.GradientTransformationExtraArgs:
    """Multiplies what `inner` makes of the gradient by lambda, of this update's g and w (LARS).

    With decay alone in `inner`, and momentum after, it makes the scaled variant; with momentum in
    `inner` too, the unscaled one. Without decay, momentum and epsilon the result has the norm
    eta ||w||, however the gradient is scaled.

    The update function needs the keyword `trust_coefficient`, eta; with `decay` also
    `weight_decay`, beta; and takes `trust_epsilon`, which is added to the norms below.

    Args:
      inner: a transform of the gradient.
      mask: True where there is a trust ratio: like the parameters, or a function that makes such a
        tree of them.
      decay: beta ||w|| is in lambda; `inner` applies it.
      at_zero: lambda where ||w|| or ||g|| is 0: "one", or by the "formula" (but 1 where that would
        divide by 0).
    """

    def init(params: Any) -> TrustState:
        return TrustState(jax.tree.map(_one, params), inner.init(params))

    def update(
        gradient: Any,
        state: TrustState,
        params: Any = None,
        *,
        trust_coefficient: ArrayLike,
        trust_epsilon: ArrayLike = 0.0,
        **keywords: Any,
    ) -> tuple[Any, TrustState]:
        ratio = functools.partial(
            _lars_ratio,
            coefficient=trust_coefficient,
            weight_decay=keywords["weight_decay"] if decay else 0.0,
            epsilon=trust_epsilon,
            at_zero=at_zero,
        )
        params = needed(params, "a trust ratio")
        # Of the gradient that comes in, not of `inner`'s: decay and momentum are not in ||g||.
        ratios = jax.tree.map(ratio, gradient, params, flags(mask, params))
        direction, of_inner = inner.update(gradient, state.inner, params, **keywords)
        # The ratios are in the state to be looked at: no later update depends on them.
        return jax.tree.map(_scale, ratios, direction), TrustState(ratios, of_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _unbiased(forgotten: ArrayLike, updates: Float[Array, ""]) -> Float[Array, ""]:
    """Computes 1 - (1 - forgotten)^updates, by which a moment that started at 0 is too small."""
    # By expm1 and log1p, since 0.999 in float32 is off by 5e-5 of what it lacks of 1.
    return -jnp.expm1(updates * jnp.log1p(-jnp.asarray(forgotten).astype(updates.dtype)))


def _moment(
    old: Float[Leaf, "*shape"], new: Float[Leaf, "*shape"], forgotten: Any
) -> Float[Leaf, "*shape"]:
    """Moves a moment towards a new value: (1 - forgotten) old + forgotten new."""
    return in_type_of(old, 1.0 - forgotten) * old + in_type_of(new, forgotten) * new


def _lamb_direction(
    mean: Float[Leaf, "*shape"],
    square: Float[Leaf, "*shape"],
    w: Float[Leaf, "*shape"],
    scaled: bool,
    *,
    to_mean: Float[Array, ""],
    to_square: Float[Array, ""],
    epsilon: ArrayLike,
    weight_decay: ArrayLike | None,
) -> Float[Leaf, "*shape"]:
    """Computes u: the mean gradient by the root of the mean square, and decay."""
    root = jnp.sqrt(in_type_of(square, to_square) * square)
    # Epsilon past the root, as in the paper: under it, it would count where gradients are small.
    r = in_type_of(mean, to_mean) * mean / (root + in_type_of(square, epsilon))
    # Decay within the norm ||u||, as in the paper: the ratio bounds both together.
    return r + in_type_of(w, weight_decay) * w if scaled and weight_decay is not None else r


def _lamb_ratio(
    u: Float[Leaf, "*shape"], w: Float[Leaf, "*shape"], scaled: bool, *, clip: tuple[Any, ...]
) -> Float[Array, ""]:
    """Computes phi(||w||) / ||u|| of an array, or 1 if it has none."""
    if not scaled:
        return _one(w)
    of_u, of_w = norm(u), norm(w)
    phi = jnp.clip(of_w, *(in_type_of(of_w, bound) for bound in clip)) if clip else of_w
    # By ||w|| itself, for phi(0) is not 0 if it clips from below.
    return _ratio(phi, of_u, of_u, of_w)


def scale_by_lamb(
    mask: Mask, *, decay: bool = False, norm_clip: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Makes the direction of LAMB (You et al. 2020, Algorithm 2), its learning rate left out.

        m <- b1 m + (1 - b1) g;       v <- b2 v + (1 - b2) g^2
        u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon) + lambda w
        result = phi(||w||) / ||u|| u

    The ratio is 1 where ||w|| or ||u|| is 0. Its t, from 1, is the keyword `update_index` plus one.
    Squares of gradients beyond 1e19 overflow float32.

    The update function needs the keywords `update_index`, `epsilon`, `one_minus_beta1` and
    `one_minus_beta2` (of which float32 keeps more digits than of betas near 1); with `decay`
    `weight_decay`, lambda; with `norm_clip` `least_norm` and `greatest_norm`.

    Args:
      mask: True where there is a trust ratio and decay: like the parameters, or a function that
        makes such a tree of them.
      decay: lambda w is there.
      norm_clip: phi(z) is min(max(z, least_norm), greatest_norm) and not z.
    """

    def init(params: Any) -> LambState:
        # Two trees of zeros, and not one twice: a step that is given the state's memory for the
        # next one cannot be given an array twice.
        mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return LambState(mean, square, jax.tree.map(_one, params))

    def update(
        gradient: Any,
        state: LambState,
        params: Any = None,
        *,
        update_index: ArrayLike,
        one_minus_beta1: ArrayLike,
        one_minus_beta2: ArrayLike,
        epsilon: ArrayLike,
        **keywords: Any,
    ) -> tuple[Any, LambState]:
        # From 1, for at 0 updates both corrections would divide by 0; float32 is exact up to 2^24.
        t = jnp.asarray(update_index).astype(jnp.result_type(float)) + 1.0
        params = needed(params, "a trust ratio")
        scaled = flags(mask, params)
        mean = jax.tree.map(lambda m, g: _moment(m, g, one_minus_beta1), state.mean, gradient)
        square = jax.tree.map(
            lambda v, g: _moment(v, jnp.square(g), one_minus_beta2), state.square, gradient
        )
        direction = functools.partial(
            _lamb_direction,
            # Inverses, so that arrays are multiplied, and only scalars divided.
            to_mean=1.0 / _unbiased(one_minus_beta1, t),
            to_square=1.0 / _unbiased(one_minus_beta2, t),
            epsilon=epsilon,
            weight_decay=keywords["weight_decay"] if decay else None,
        )
        clip = (keywords["least_norm"], keywords["greatest_norm"]) if norm_clip else ()
        u = jax.tree.map(direction, mean, square, params, scaled)
        ratios = jax.tree.map(functools.partial(_lamb_ratio, clip=clip), u, params, scaled)
        return jax.tree.map(_scale, ratios, u), LambState(mean, square, ratios)

    return optax.GradientTransformationExtraArgs(init, update)
