"""Explains a run's optimizer."""

import jax
import ml_collections
from jaxtyping import PyTree

from lbsgd.models.roles import Role
from lbsgd.optim.chain import decayed
from lbsgd.system.text import pluralize


def explain_optimizer(c: ml_collections.ConfigDict, roles: PyTree[Role]) -> str:
    """Says which optimizer it is, and what decays.

    Args:
      c: the config's `optimizer`.
      roles: of the parameters.
    """
    flags = jax.tree.leaves(decayed(roles))
    arrays = pluralize(len(flags), "parameter array")
    decay = f"weight decay {c.weight_decay:g} on {sum(flags)} of {arrays}"
    if c.name == "lamb":
        clip = " of norms from {:g} to {:g}".format(*c.norm_clip) if c.norm_clip else ""
        return (
            f"optimizer: LAMB, beta {c.beta1:g} and {c.beta2:g}, epsilon {c.epsilon:g}; "
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
    decay = f"{c.weight_decay_form} {decay}" if c.weight_decay else "no weight decay"
    return f"optimizer: {c.name.upper()}, {momentum}; {decay}{trust}"
