"""Explains a run's optimizer."""

import math
from typing import Any

import jax
import ml_collections
from jaxtyping import PyTree

from lbsgd.config.dotted import Named, is_dotted, load
from lbsgd.models.roles import Role
from lbsgd.models.selection import trained_part
from lbsgd.optim.masks import decayed, flags, scaled
from lbsgd.optim.refresh import Sharing
from lbsgd.optim.stock import decay_mask, own_mask
from lbsgd.system.text import decimal, pluralize
from lbsgd.workers.collectives.ownership import balance, sent


def decaying(c: ml_collections.ConfigDict, roles: PyTree[Role]) -> PyTree[bool]:
    """Tells which parameters decay.

    Args:
      c: the config's `optimizer`.
      roles: of the parameters.
    """
    if not c.weight_decay:
        return jax.tree.map(lambda _: False, roles)
    mask = decayed(roles, c.decayed_roles)
    if is_dotted(c.name):
        return flags(decay_mask(_named(c), _options(c), mask), roles)
    return mask


def with_trust_ratio(c: ml_collections.ConfigDict, roles: PyTree[Role]) -> PyTree[bool]:
    """Tells which parameters have a trust ratio of LARS or LAMB; arguments as in `decaying`."""
    if c.name in ("lars", "lamb"):
        return scaled(roles)
    return jax.tree.map(lambda _: False, roles)


def explain_optimizer(c: ml_collections.ConfigDict, roles: PyTree[Role]) -> str:
    """Says which optimizer it is, and what decays; arguments as in `decaying`."""
    explained = _explain_dotted(c, roles) if is_dotted(c.name) else _explain_own(c, roles)
    rates = [f"rate times {mu:g} on {name!r}" for name, mu in sorted(c.rate_multipliers.items())]
    return "; ".join([f"optimizer: {explained}", *rates])


def explain_frozen(c: ml_collections.ConfigDict, params: PyTree[Any], trained: Any) -> list[str]:
    """Says in a line what is frozen and how much is left to be trained; none of no `freeze`.

    Args:
      c: the config's `optimizer`.
      params: shapes of the parameters.
      trained: like them.
    """
    if not c.freeze:
        return []
    of_all, left = jax.tree.leaves(params), jax.tree.leaves(trained_part(params, trained))
    sizes = [sum(math.prod(x.shape) for x in arrays) for arrays in (left, of_all)]
    return [
        f"frozen: {', '.join(map(repr, c.freeze))}; {len(left)} of "
        f"{pluralize(len(of_all), 'parameter array')} are trained, {sizes[0]:,} of "
        f"{pluralize(sizes[1], 'parameter')}"
    ]


def _explain_decay(c: ml_collections.ConfigDict, roles: PyTree[Role]) -> str:
    decays = jax.tree.leaves(decaying(c, roles))
    arrays = pluralize(len(decays), "parameter array")
    return f"weight decay {c.weight_decay:g} on {sum(decays)} of {arrays}"


def _explain_own(c: ml_collections.ConfigDict, roles: PyTree[Role]) -> str:
    """Explains one of lbsgd's."""
    decay = _explain_decay(c, roles)
    if c.name == "lamb":
        clip = " of norms from {:g} to {:g}".format(*c.norm_clip) if c.norm_clip else ""
        return (
            f"LAMB, beta {c.beta1:g} and {c.beta2:g}, epsilon {c.epsilon:g}; "
            f"{decay if c.weight_decay else 'no weight decay'}; trust ratio{clip} on kernels"
        )
    kind = "Nesterov momentum" if c.nesterov else "momentum"
    lars = c.name == "lars"
    held = "rate and trust ratio" if lars else "rate"
    form = f"equation (9), {held} outside the buffer"
    if c.momentum_form == "rate_inside":
        corrected = "with" if c.momentum_correction else "without"
        form = f"equation (10), {held} inside the buffer, {corrected} momentum correction"
    trust = ""
    if lars:
        literal = ", by its formula where a norm is 0" if c.trust_at_zero == "formula" else ""
        trust = f"; trust ratio {c.trust_coefficient:g} on kernels{literal}"
    momentum = f"{kind} {c.momentum:g} ({form})" if c.momentum else "no momentum"
    of_form = "decoupled" if c.name == "spngd" else c.weight_decay_form
    decay = f"{of_form} {decay}" if c.weight_decay else "no weight decay"
    if c.name == "spngd":
        return f"SP-NGD, {_explain_curvature(c)}; {momentum}; {decay}"
    return f"{c.name.upper()}, {momentum}; {decay}{trust}"


def explain_sharing(sharing: Sharing, parameters: int, itemsize: int) -> list[str]:
    """Explains which layers natural gradients are made of, and how devices share them out.

    Args:
      parameters: numbers of those that are trained.
      itemsize: bytes of a number.
    """
    stacks = sharing.stacks.values()
    owners = [stack.owner for stack in stacks]
    layers = sum(o.layers for o in owners)
    line = f"natural gradient: {pluralize(layers, 'layer')} of {pluralize(len(owners), 'shape')}"
    if sharing.norms:
        line += f" by factors, {pluralize(len(sharing.norms), 'norm')} by channel"
    devices = owners[0].devices if owners else 1
    if devices == 1:
        return [line]
    counts = sent(owners)
    # What no factors are for, and the statistics of norms, cross by an all-reduce.
    others = parameters - sum(o.layers * o.long * o.columns for o in owners)
    of_norms = sum(3 * layer.outputs for layer in sharing.norms.values())
    ring = 2 * (devices - 1) / devices
    gradients = counts.gradients + round(ring * others)
    of_statistics = counts.statistics * (2 if sharing.dtype else itemsize)
    of_statistics += (counts.inversions + round(ring * of_norms)) * itemsize
    return [
        f"{line}; of the inversions each of {pluralize(devices, 'device')} does "
        f"{decimal(100 / devices / balance(owners))}% of what one alone would",
        f"natural gradient: a device sends {_megabytes(gradients * itemsize)} of gradients "
        f"and {_megabytes(counts.updates * itemsize)} of updates, and "
        f"{_megabytes(of_statistics)} of statistics where all are due",
    ]


def _megabytes(size: int) -> str:
    return f"{decimal(size / 1e6)} MB"


def _explain_curvature(c: ml_collections.ConfigDict) -> str:
    """Explains what is particular to natural gradients."""
    share = "" if c.fisher_share == 1 else f" of {100 * c.fisher_share:g}% of each worker"
    rescaled = {
        "none": "",
        "always": ", kernels rescaled to sqrt(2 d_out)",
        "larger": ", larger kernels rescaled to sqrt(2 d_out)",
    }[c.weight_rescaling]
    follows = ", momentum in proportion to the rate" * (c.momentum_schedule == "with_rate")
    falls = f"{c.initial_damping:g} falling to " if c.initial_damping else ""
    stale = f", stale below a change of {100 * c.stale_threshold:g}%" if c.stale_threshold else ""
    fisher = {"empirical": "empirical Fisher", "1mc": "Fisher of sampled labels"}[c.fisher]
    return (
        f"{fisher}{share}{stale}, damping {falls}{c.damping:g}, times {c.norm_damping:g} "
        "for norms"
        f"{rescaled}{follows}"
    )


def _explain_dotted(c: ml_collections.ConfigDict, roles: PyTree[Role]) -> str:
    """Explains one that a dotted name names, and whose decay it is."""
    named, decay = _named(c), _explain_decay(c, roles)
    options = ", ".join(f"{name}={value!r}" for name, value in sorted(_options(c).items()))
    rate = "told the rate" if named.takes("learning_rate") else "a direction, times the rate"
    if not c.weight_decay:
        decay = "no weight decay"
    elif named.takes("weight_decay"):
        told = own_mask(named) or "nothing, so all of them"
        decay = f"{decay} by its own weight_decay (which: by {told})"
    else:
        decay = f"{c.weight_decay_form} {decay}"
    return f"{c.name}({options}), {rate}; {decay}"


def _named(c: ml_collections.ConfigDict) -> Named:
    return load("optimizer.name", c.name)


def _options(c: ml_collections.ConfigDict) -> dict[str, Any]:
    return ml_collections.ConfigDict(c.options).to_dict()
