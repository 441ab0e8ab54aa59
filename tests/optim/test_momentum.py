"""Momentum with the rate outside the buffer, equation (9), and inside it, equation (10)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbsgd.models.roles import Role
from lbsgd.optim import sgd
from lbsgd.optim.chain import sgd_rule
from lbsgd.optim.momentum import MomentumState, rate_inside_momentum

pytestmark = pytest.mark.usefixtures("x64")

EPS = np.finfo(np.float64).eps
ROLES = {"kernel": Role.KERNEL, "bias": Role.BIAS}
SIZE = 3
UPDATES = 12


def schedule_of(rates):
    return lambda update: jnp.asarray(rates)[update]


def trajectory(optimizer, params, gradients):
    """The parameters after each update, stacked, and the last state, by `lax.scan`."""

    def one(carry, update_and_gradient):
        params, state = carry
        update, gradient = update_and_gradient
        changes, state = optimizer.update(gradient, state, params, update_index=update)
        params = jax.tree.map(jnp.add, params, changes)
        return (params, state), params

    updates = jnp.arange(jax.tree.leaves(gradients)[0].shape[0], dtype=jnp.int32)
    (_, state), history = jax.lax.scan(one, (params, optimizer.init(params)), (updates, gradients))
    return history, state


# --- the paper's numbers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "correction", "expected"),
    [
        pytest.param("rate_outside", True, (-0.1, -0.29, -3.0), id="equation 9"),
        pytest.param("rate_inside", False, (-0.1, -0.29, -1.461), id="equation 10"),
        pytest.param("rate_inside", True, (-0.1, -0.29, -3.0), id="equation 10, corrected"),
    ],
)
def test_the_paper_s_example(form, correction, expected):
    """m = 0.9, g = 1, eta = 0.1, 0.1, 1: what (10) without correction gets wrong."""
    optimizer = sgd(
        schedule_of([0.1, 0.1, 1.0]),
        roles={"w": Role.KERNEL},
        momentum=0.9,
        momentum_form=form,
        momentum_correction=correction,
    )
    history, _ = trajectory(optimizer, {"w": jnp.zeros(())}, {"w": jnp.ones(3)})
    # About ten roundings of numbers up to 3.
    np.testing.assert_allclose(history["w"], expected, rtol=0, atol=10 * 3 * EPS)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("form", ["rate_outside", "rate_inside"])
def test_python_integers_serve_as_update_index(form, nesterov):
    """Eagerly, update by update, against numpy: u <- m u + g; w <- w - eta (u or g + m u)."""
    rates, gradients = [0.1, 0.3, 0.05], [1.0, -2.0, 0.5]
    optimizer = sgd(
        schedule_of(rates),
        roles={"w": Role.KERNEL},
        momentum=0.8,
        nesterov=nesterov,
        momentum_form=form,
    )
    params = {"w": jnp.asarray(1.0)}
    state = optimizer.init(params)
    w, u = 1.0, 0.0
    for update, (rate, g) in enumerate(zip(rates, gradients)):
        changes, state = optimizer.update({"w": jnp.asarray(g)}, state, params, update_index=update)
        params = jax.tree.map(jnp.add, params, changes)
        u = 0.8 * u + g
        w -= rate * (g + 0.8 * u if nesterov else u)
    np.testing.assert_allclose(params["w"], w, rtol=0, atol=30 * EPS)


# --- (9) is (10) with correction -------------------------------------------------------------


@functools.partial(
    jax.jit, static_argnames=("form", "correction", "nesterov", "decay", "decay_form")
)
def train(rates, start, gradients, *, form, correction, nesterov, decay, decay_form):
    """The history of parameters through the whole chain."""
    optimizer = sgd(
        schedule_of(rates),
        roles=ROLES,
        momentum=0.9,
        nesterov=nesterov,
        momentum_form=form,
        momentum_correction=correction,
        weight_decay=decay,
        weight_decay_form=decay_form,
    )
    return trajectory(optimizer, start, gradients)[0]


def magnitude(rates, start, gradients) -> float:
    """A bound on every number that enters a parameter: |w0| + sum of eta max|g| / (1 - m)."""
    largest = max(np.abs(g).max() for g in gradients.values())
    first = max(np.abs(w).max() for w in start.values())
    return first + rates.sum() * largest / (1 - 0.9)


CHAINS = [(0.0, "coupled"), (1e-3, "coupled"), (1e-3, "decoupled")]
# Over five orders of magnitude, as far as a warmup or a decay could ever jump in one update.
RATES = st.lists(st.floats(1e-5, 1.0), min_size=UPDATES, max_size=UPDATES).map(np.array)


@settings(
    max_examples=60,
    deadline=None,
    # The fixture turns on 64-bit types, which no example changes.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("decay", "decay_form"), CHAINS)
@given(rates=RATES, seed=st.integers(0, 2**32 - 1))
def test_both_forms_agree_under_any_positive_schedule(decay, decay_form, nesterov, rates, seed):
    random = np.random.default_rng(seed)
    start = {name: random.normal(size=SIZE) for name in ROLES}
    gradients = {name: random.normal(size=(UPDATES, SIZE)) for name in ROLES}
    options = {"nesterov": nesterov, "decay": decay, "decay_form": decay_form}
    outside, inside = (
        train(rates, start, gradients, form=form, correction=True, **options)
        for form in ("rate_outside", "rate_inside")
    )
    # Ten roundings an update, none of a number beyond the magnitude. Decay feeds an error back at
    # most T lambda / (1 - m) = 12 percent; twice is room for that.
    atol = 2 * 10 * UPDATES * EPS * magnitude(rates, start, gradients)
    for name in ROLES:
        np.testing.assert_allclose(inside[name], outside[name], rtol=0, atol=atol)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("decay", "decay_form"), CHAINS)
def test_without_correction_a_changing_rate_tells_the_forms_apart(decay, decay_form, nesterov):
    """So that the test above is known to see the correction; at one rate they agree."""
    start = {name: np.zeros(SIZE) for name in ROLES}
    gradients = {name: np.ones((UPDATES, SIZE)) for name in ROLES}
    options = {"nesterov": nesterov, "decay": decay, "decay_form": decay_form}
    for rates, alike in (np.full(UPDATES, 0.1), True), (np.geomspace(0.01, 1, UPDATES), False):
        outside, inside = (
            train(rates, start, gradients, form=form, correction=False, **options)
            for form in ("rate_outside", "rate_inside")
        )
        atol = 2 * 10 * UPDATES * EPS * magnitude(rates, start, gradients)
        difference = np.abs(inside["kernel"] - outside["kernel"]).max()
        assert difference <= atol if alike else difference > 0.1


# --- a rate of zero --------------------------------------------------------------------------


def inside_by_hand(rates, gradients, m, nesterov) -> np.ndarray:
    """Equation (10) corrected, one number: c = eta / eta_before, 1 where eta_before is 0."""
    w, v, history = 0.0, 0.0, []
    for t, (rate, g) in enumerate(zip(rates, gradients)):
        before = rates[max(t - 1, 0)]
        v = m * (rate / before if before else 1.0) * v + rate * g
        w -= rate * g + m * v if nesterov else v
        history.append(w)
    return np.array(history)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    "rates",
    [(0.0, 0.1, 0.2, 0.3), (0.1, 0.0, 0.2, 0.2), (0.1, 0.0, 0.0, 0.3), (0.0, 0.0, 0.0, 0.0)],
    ids=str,
)
def test_a_rate_of_zero_keeps_the_parameters_finite(rates, nesterov):
    gradients = np.array([1.0, -2.0, 3.0, 0.5])
    optimizer = sgd(
        schedule_of(list(rates)),
        roles={"w": Role.KERNEL},
        momentum=0.9,
        nesterov=nesterov,
        momentum_form="rate_inside",
    )
    history, state = trajectory(optimizer, {"w": jnp.zeros(())}, {"w": jnp.asarray(gradients)})
    expected = inside_by_hand(rates, gradients, 0.9, nesterov)
    np.testing.assert_allclose(history["w"], expected, rtol=0, atol=20 * 3 * EPS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(("before", "factor"), [(0.0, 1.0), (0.25, 2.0), (2.0, 0.25)])
def test_the_correction_factor(before, factor):
    """What a full buffer is multiplied by, besides m, when the rate goes from `before` to 0.5."""
    buffer = MomentumState({"w": jnp.asarray(3.0)})
    result, state = rate_inside_momentum().update(
        {"w": jnp.asarray(10.0)},
        buffer,
        learning_rate=0.5,
        last_learning_rate=before,
        momentum=0.9,
    )
    np.testing.assert_allclose(result["w"], 0.9 * factor * 3.0 + 0.5 * 10.0, rtol=4 * EPS)
    np.testing.assert_array_equal(result["w"], state.buffer["w"])


def test_the_first_update_has_no_rate_before_it():
    keys = {"momentum_form": "rate_inside", "momentum_correction": True, "nesterov": False}
    rule = sgd_rule(
        schedule_of([0.5, 7.0]),
        ROLES,
        momentum=0.9,
        weight_decay=0.0,
        decayed_roles=("kernel",),
        weight_decay_form="coupled",
        **keys,
    )
    first, second = rule.numbers_at(0), rule.numbers_at(1)
    assert (first["learning_rate"], first["last_learning_rate"]) == (0.5, 0.5)
    assert (second["learning_rate"], second["last_learning_rate"]) == (7.0, 0.5)


# --- optax -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rate_outside_is_optax_sgd(momentum, nesterov):
    random = np.random.default_rng(0)
    rates = random.uniform(0.01, 1.0, UPDATES)
    start = {name: random.normal(size=SIZE) for name in ROLES}
    gradients = {name: random.normal(size=(UPDATES, SIZE)) for name in ROLES}
    ours = sgd(schedule_of(rates), roles=ROLES, momentum=momentum, nesterov=nesterov)
    found, _ = trajectory(ours, start, gradients)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.with_extra_args_support(
            optax.sgd(schedule_of(rates), momentum=momentum or None, nesterov=nesterov)
        )
        expected, _ = trajectory(theirs, start, gradients)
    atol = 10 * UPDATES * EPS * magnitude(rates, start, gradients)
    for name in ROLES:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=atol)
