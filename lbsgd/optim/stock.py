"""Takes in optimizers that were written elsewhere: optax's own, and anyone's by a dotted name."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lbsgd.config.dotted import Named
from lbsgd.optim.masks import Mask, Roles, decayed
from lbsgd.optim.rate import scale_by_negative_rate
from lbsgd.optim.rule import Number, Rule, is_on
from lbsgd.optim.weight_decay import coupled_weight_decay, decoupled_weight_decay
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

# What optax's optimizers call the argument that selects what decays.
MASK_NAMES = ("mask", "weight_decay_mask")
# Arguments that are set elsewhere, and where.
_SET_BY = {
    "learning_rate": "the keys of learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "roles": "the layers",
}
# What others call the learning rate.
_RATE_NAMES = ("lr", "rate", "step_size")
# A schedule may start at 0.
_UPDATES_PROBED = 3


def rule_of(
    learning_rate: Number,
    roles: Roles,
    *,
    named: Named,
    options: Mapping[str, Any],
    weight_decay: Any,
    decayed_roles: Sequence[str],
    weight_decay_form: str,
) -> Rule:
    """Makes a rule of a function that returns an optax transformation.

    Where it takes `learning_rate` it is called in every update with the rate of that update, so
    that the rate is a number of the compiled update. Where it takes none, what it returns is a
    direction, which is scaled by the negative rate, so it must not be negated yet. If it takes
    `weight_decay` it is given that, and which parameters decay by `mask` or `weight_decay_mask`;
    else there is decay of ours, in the form asked for. If it takes `roles` it is given these.

    Args:
      options: its other arguments, by name.

    Raises:
      ConfigError: an option that it does not take or that is set elsewhere, an error in it, or
        what it returns is no transformation, or no direction where it takes no rate.
    """
    for option in _SET_BY.keys() & options.keys():
        raise ConfigError(f"{named}: {option} is set by {_SET_BY[option]}, not by its options")
    mask = decayed(roles, decayed_roles)
    given = {"roles": roles, **_decay_given(named, weight_decay, mask)}

    def make(**rate: Any) -> optax.GradientTransformationExtraArgs:
        made = named.call(options, **given, **rate)
        if not isinstance(made, optax.GradientTransformation):
            raise named.error(f"returns {short_repr(made)}, which is no optax transformation")
        return optax.with_extra_args_support(made)

    steps: list[optax.GradientTransformation] = [_of_others(named, make)]
    if not named.takes("learning_rate"):
        with _promotion_by_default():
            made = make()  # once: whatever is wrong with it is known before an update
            _check_direction(named, made)
        steps = [_of_others(named, lambda **_: made), scale_by_negative_rate()]
    numbers: dict[str, Number] = {"learning_rate": learning_rate}
    if is_on(weight_decay) and not named.takes("weight_decay"):
        numbers["weight_decay"] = weight_decay
        if weight_decay_form == "coupled":
            steps.insert(0, coupled_weight_decay(mask))
        else:
            steps.append(decoupled_weight_decay(mask))
    return Rule(optax.chain(*steps), numbers)


def check_update(rule: Rule, params: Any) -> None:
    """Traces an update, in which mistakes of others show before a run is compiled.

    Args:
      params: shapes of the parameters.

    Raises:
      ConfigError: there is one.
    """

    def update(params: Any) -> Any:
        state, numbers = rule.transform.init(params), rule.numbers_at(0)
        return rule.transform.update(params, state, params, update_index=jnp.int32(0), **numbers)

    jax.eval_shape(update, params)


def own_mask(named: Named) -> str:
    """Names the argument by which it is told what decays; "" where it has none."""
    return next(filter(named.takes, MASK_NAMES), "") if named.takes("weight_decay") else ""


def decay_mask(named: Named, options: Mapping[str, Any], mask: Mask) -> Mask:
    """Tells which parameters decay with an optimizer of a dotted name.

    All of them where it decays by itself and takes no mask.

    Args:
      mask: of those that are to decay.
    """
    if not named.takes("weight_decay"):
        return mask
    own = options.get(own_mask(named), mask) if own_mask(named) else None
    return jax.tree.map(lambda _: True, mask) if own is None else own


def _decay_given(named: Named, weight_decay: Any, mask: Mask) -> dict[str, Any]:
    """Collects the arguments by which it decays itself."""
    name = own_mask(named)
    return {"weight_decay": weight_decay, **({name: mask} if name else {})}


def _check_direction(named: Named, made: optax.GradientTransformationExtraArgs) -> None:
    """Refuses what is negated already: lbsgd would turn it round, and raise the loss."""
    along = 0.0
    # What needs the network's own tree, as masks may, cannot be probed.
    with contextlib.suppress(Exception):
        along = _along_gradient(made)
    if along < 0:
        other = next(filter(named.takes, _RATE_NAMES), "")
        take = f"call {other!r} learning_rate" if other else "take learning_rate as an argument"
        raise named.error(
            "gives changes against the gradient, as an optimizer with a rate of its own does, "
            f"which lbsgd would turn round; {take} (it is told this update's rate; one with a "
            "schedule of its own may ignore it), or return a direction, as optax.scale_by_adam does"
        )


def _along_gradient(transform: optax.GradientTransformationExtraArgs) -> float:
    """Sums <change, gradient> over the first updates of a small kernel."""

    def products(params: Any, gradient: Any) -> Any:
        state, found = transform.init(params), []
        for t in range(_UPDATES_PROBED):
            changes, state = transform.update(gradient, state, params, update_index=jnp.int32(t))
            found.append(jnp.vdot(changes["w"], gradient["w"]))
        return sum(found)

    # Positive, and not all alike: of such a gradient some transforms leave nothing.
    gradient = jnp.arange(1.0, 7.0).reshape(3, 2)
    return float(jax.jit(products)({"w": jnp.ones((3, 2))}, {"w": gradient}))


@contextlib.contextmanager
def _promotion_by_default() -> Iterator[None]:
    """Lets arrays of different types and ranks meet, as what was written elsewhere may have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _of_others(
    named: Named, make: Callable[..., optax.GradientTransformationExtraArgs]
) -> optax.GradientTransformationExtraArgs:
    """Makes a transform of one that is made anew for each rate, and checks what it gives.

    The update function needs the keyword `learning_rate`, and passes all that it has on.
    """

    def init(params: Any) -> Any:
        with named.guard(), _promotion_by_default():
            # An array as in updates, so that the state is that of these.
            return jax.tree.map(_strong, make(learning_rate=jnp.ones(())).init(params))

    def update(
        gradient: Any, state: Any, params: Any = None, *, learning_rate: ArrayLike, **others: Any
    ) -> tuple[Any, Any]:
        with named.guard(), _promotion_by_default():
            transform = make(learning_rate=learning_rate)
            changes, after = transform.update(gradient, state, params, **others)
            after = jax.tree.map(_strong, after)
        if _described(after, types=True) != _described(state, types=True):
            raise named.error("returns a state of other shapes or types than before the update")
        if _described(changes) != _described(gradient):
            raise named.error("returns changes of other shapes than the parameters have")
        # A float32 rate may have widened what is of a smaller type.
        return jax.tree.map(lambda u, g: u.astype(g.dtype), changes, gradient), after

    return optax.GradientTransformationExtraArgs(init, update)


def _strong(x: Any) -> jax.Array:
    """Gives an array a type of its own, which a Python number in it has not: it would change."""
    array = jnp.asarray(x)
    return array.astype(array.dtype) if array.aval.weak_type else array


def _described(tree: Any, *, types: bool = False) -> Any:
    """Describes a tree by its structure and the shapes of its arrays, and their types if asked."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x) if types else None) for x in leaves]
