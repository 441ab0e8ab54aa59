"""The optimizers in anyone's training loop: what optax's own transformations keep to."""

import doctest
import functools
import subprocess
import sys

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from layerwise_by_hand import ROLES, UPDATES, gradient_of, problem
from layerwise_by_hand import schedule as varying

import lbsgd.optim
from lbsgd.models.roles import Role, roles_by_name
from lbsgd.optim import lamb, lars, library, sgd
from lbsgd.optim.chain import lars_rule
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve

INSIDE, OUTSIDE = {"momentum_form": "rate_inside"}, {"momentum_form": "rate_outside"}
CORRECTED = {**INSIDE, "momentum_correction": True}
DECOUPLED = {"weight_decay": 0.1, "weight_decay_form": "decoupled"}
OPTIMIZERS = {
    "sgd": (sgd, {}),
    "sgd without momentum": (sgd, {"momentum": 0.0, "weight_decay": 0.1}),
    "sgd, corrected": (sgd, {**CORRECTED, "nesterov": True, **DECOUPLED}),
    "lars": (lars, {"weight_decay": 0.1}),
    "lars, corrected": (lars, {**CORRECTED, **DECOUPLED}),
    "lars, unscaled": (lars, {**OUTSIDE, "weight_decay": 0.1, "trust_epsilon": 0.1}),
    "lamb": (lamb, {"weight_decay": 0.1, "norm_clip": (0.1, 3.0)}),
}


def cases(*short):
    """The optimizers; but for some only in long tests."""
    return pytest.mark.parametrize(
        ("make", "keys"),
        [
            pytest.param(*case, id=name, marks=[] if name in short else pytest.mark.long)
            for name, case in OPTIMIZERS.items()
        ],
    )


of_each = cases("lars, unscaled", "lamb")
# What takes long to compile.
of_each_compiled = cases("lars, corrected")


def schedule(update):
    return 0.1 + 0.1 * jnp.asarray(update).astype(jnp.result_type(float))


@pytest.fixture
def made(make, keys):
    return make(schedule, **keys)


def arrays(seed, dtype=np.float32):
    """Of a layer and its norm; by name the layer's bias and the norm's are different things."""
    random = np.random.default_rng(seed)
    shapes = {"layer": {"kernel": (3, 2), "bias": (2,)}, "norm": {"scale": (2,), "bias": (2,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def assert_close(found, expected, rtol=2e-6):
    """To a few roundings of float32, of numbers around 1."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), found, expected
    )


def trained(tx, updates=3, update=None):
    """The parameters and the state after some updates."""
    update, params = update or tx.update, arrays(0)
    state = tx.init(params)
    for t in range(updates):
        changes, state = update(arrays(t + 1), state, params)
        params = optax.apply_updates(params, changes)
    return params, state


# --- contracts -------------------------------------------------------------------------------


@of_each
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_the_state_keeps_its_structure_shapes_and_types(made, dtype):
    """So that it can be carried through `lax.scan` and given to what was compiled for it."""
    params = arrays(0, dtype)
    state = made.init(params)
    changes, after = jax.eval_shape(made.update, arrays(1, dtype), state, params)
    assert described(after) == described(state)
    assert described(changes) == described(params)


@of_each_compiled
def test_compiled_it_is_the_same(made):
    params, state = trained(made)
    compiled, like = trained(made, update=jax.jit(made.update))
    assert_close(compiled, params)
    assert_close(like, state)


@of_each
def test_it_counts_unless_it_is_told(made):
    """What it is told it goes on from."""
    params = arrays(0)
    _, state = trained(made)
    assert optax.tree.get(state, "update_index") == 3
    counted, after = made.update(arrays(9), state, params)
    told, _ = made.update(arrays(9), state, params, update_index=3)
    assert_close(counted, told)
    other, later = made.update(arrays(9), state, params, update_index=np.int64(40))
    assert np.abs(other["layer"]["kernel"] - told["layer"]["kernel"]).max() > 1e-3
    assert optax.tree.get(after, "update_index") == 4
    assert optax.tree.get(later, "update_index") == 41
    assert described(later) == described(state)


@of_each
def test_masked_it_is_that_of_what_is_left(made):
    """A tree of roles is of all parameters there, and so is a mask."""
    params, gradient = arrays(0), arrays(1)
    mask = {"layer": True, "norm": {"scale": False, "bias": True}}
    tx = optax.masked(made, mask)
    changes, state = tx.update(gradient, tx.init(params), params)
    assert_close(changes["norm"]["scale"], gradient["norm"]["scale"], rtol=0)
    del params["norm"]["scale"], gradient["norm"]["scale"], changes["norm"]["scale"]
    expected, _ = made.update(gradient, made.init(params), params)
    assert_close(changes, expected)
    assert described(tx.init(arrays(0))) == described(state)


def test_roles_of_all_parameters_serve_when_masked():
    roles = roles_by_name(arrays(0))
    for make in (sgd, lars, lamb):
        found, expected = (
            trained(
                optax.masked(make(0.1, weight_decay=0.1, roles=r), {"layer": True, "norm": False})
            )
            for r in (roles, None)
        )
        assert_close(found[0], expected[0], rtol=0)


@of_each_compiled
def test_several_steps_are_one_of_their_mean(made):
    """`optax.MultiSteps`, in one compiled program for the steps that change nothing."""
    tx = optax.MultiSteps(made, 3).gradient_transformation()
    start = arrays(0)
    with jax.numpy_dtype_promotion("standard"):  # as optax has it
        found, state = trained(tx, updates=6, update=jax.jit(tx.update))
    params, inner = start, made.init(start)
    for t in (0, 3):
        mean = jax.tree.map(lambda *g: sum(g) / 3, *(arrays(t + i + 1) for i in range(3)))
        changes, inner = made.update(mean, inner, params)
        params = optax.apply_updates(params, changes)
    assert_close(found, params, rtol=1e-5)
    assert optax.tree.get(state.inner_opt_state, "update_index") == 2


@of_each_compiled
def test_its_numbers_can_be_injected(make, keys):
    """And then set anew in the state; momentum correction asks for the schedule itself."""
    static = "learning_rate" if keys.get("momentum_correction") else ()
    tx = optax.inject_hyperparams(make, static_args=static)(schedule, **keys)
    found, state = trained(tx, update=jax.jit(tx.update))
    assert_close(found, trained(make(schedule, **keys))[0], rtol=1e-5)
    state.hyperparams["weight_decay"] = jnp.float32(0.5)
    changes, _ = tx.update(arrays(8), state, found)
    assert np.isfinite(changes["layer"]["kernel"]).all()


def test_correction_by_a_rate_that_is_not_known_is_refused():
    tx = optax.inject_hyperparams(sgd)(schedule, **CORRECTED)
    with pytest.raises(ValueError, match="static_args='learning_rate'"):
        tx.init(arrays(0))


@cases()
def test_several_at_once_are_each_alone(made):
    """By vmap, over parameters, gradients and states."""

    def both(*trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    params, gradients = both(arrays(0), arrays(1)), both(arrays(2), arrays(3))
    states = jax.vmap(made.init)(params)
    found, states = jax.vmap(made.update)(gradients, states, params)
    for i in range(2):
        alone, _ = made.update(arrays(2 + i), made.init(arrays(i)), arrays(i))
        assert_close(jax.tree.map(lambda x, i=i: x[i], found), alone)


@of_each
def test_the_state_can_be_stored(made):
    _, state = trained(made)
    restored = flax.serialization.from_bytes(
        made.init(arrays(5)), flax.serialization.to_bytes(state)
    )
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


@of_each
def test_it_stands_in_a_chain(made):
    """Where others count for themselves, and keywords are for all."""
    tx = optax.chain(optax.clip_by_global_norm(1e9), made, optax.scale_by_schedule(lambda t: 2.0))
    params = arrays(0)
    changes, _ = tx.update(arrays(1), tx.init(params), params, value=1.0)
    expected, _ = made.update(arrays(1), made.init(params), params)
    assert_close(changes, jax.tree.map(lambda x: 2.0 * x, expected))


@pytest.mark.parametrize("rate", [np.float32(0.5), jnp.float32(0.5), optax.constant_schedule(0.5)])
def test_a_number_is_a_constant_schedule(rate):
    found, expected = trained(sgd(rate), 1), trained(sgd(0.5), 1)
    assert_close(found, expected, rtol=0)


@of_each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parameters_may_lie_on_the_host(made, dtype):
    """In numpy's arrays, of float64 too where JAX has none."""
    params, gradient = (jax.tree.map(lambda x: np.asarray(x, dtype), arrays(i)) for i in range(2))
    changes, state = made.update(gradient, made.init(params), params)
    again, _ = made.update(gradient, state, params)
    assert {x.dtype for x in jax.tree.leaves(again)} == {jnp.dtype(np.float32)}
    assert_close(changes, made.update(arrays(1), made.init(arrays(0)), arrays(0))[0])


def test_names_are_there_before_they_are_imported():
    text = "import lbsgd.optim, sys; print(*dir(lbsgd.optim)); assert 'jax' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert {"sgd", "lars", "lamb"} <= set(run.stdout.split())
    with pytest.raises(AttributeError, match="has no attribute 'adam'"):
        assert lbsgd.optim.adam


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: sgd(0.1, weight_decay=0.1), lambda: lars(0.1), lambda: lamb(0.1)]
)
def test_parameters_are_asked_for(make):
    tx = make()
    with pytest.raises(ValueError, match=r"needs the parameters: update\(gradient, state, params"):
        tx.update(arrays(1), tx.init(arrays(0)))


@pytest.mark.parametrize(
    ("make", "keys", "says"),
    [
        (sgd, {"momentum_form": "inside"}, "unknown momentum_form 'inside'; known: rate_outside, "),
        (lars, {"weight_decay_form": "l2"}, "unknown weight_decay_form 'l2'"),
        (lars, {"trust_at_zero": "zero"}, "unknown trust_at_zero 'zero'"),
        (lamb, {"norm_clip": (1.0,)}, "norm_clip must be"),
        (lamb, {"epsilon": 0.0}, "epsilon must be at least"),
    ],
)
def test_what_means_nothing_is_refused(make, keys, says):
    with pytest.raises(ValueError, match=says):
        make(0.1, **keys)


@pytest.mark.parametrize("word", ["kernal", "KERNEL", True])
@pytest.mark.parametrize("make", [lars, lamb, functools.partial(sgd, weight_decay=0.1)])
def test_what_is_no_role_is_refused(make, word):
    """Said by a tree, or by a function of the parameters."""
    roles = {"layer": {"kernel": word, "bias": Role.BIAS}, "norm": "norm scale"}
    says = f"parameter layer/kernel: {word!r} is no role; roles are 'kernel', 'bias', 'norm scale'"
    with pytest.raises(ValueError, match=says):
        make(0.1, roles=roles)
    with pytest.raises(ValueError, match=says):
        trained(make(0.1, roles=lambda params: roles), updates=1)


def test_a_role_may_be_said_by_its_word():
    roles = {"layer": {"kernel": "kernel", "bias": "bias"}, "norm": "norm scale"}
    assert_close(trained(lars(0.1, roles=roles))[0], trained(lars(0.1))[0], rtol=0)


# --- the run's -------------------------------------------------------------------------------


def in_a_train_state(tx, params, gradients):
    """A plain Flax loop; `gradients` are functions of the parameters."""
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    apply = jax.jit(lambda state, gradient: state.apply_gradients(grads=gradient))
    for gradient in gradients:
        state = apply(state, gradient(state.params))
        yield jax.device_get(state.params)


LARS = {
    "momentum": 0.9,
    "nesterov": False,
    "momentum_form": "rate_inside",
    "momentum_correction": True,
    "weight_decay": 0.05,
    "decayed_roles": ("kernel",),
    "weight_decay_form": "coupled",
    "trust_coefficient": 0.01,
    "trust_epsilon": 0.0,
    "trust_at_zero": "one",
}


@pytest.mark.long
def test_in_a_train_state_it_is_the_rule_that_is_told_its_numbers(x64):
    """As in a run, whose step takes them as scalars and knows of no schedule."""
    trial = problem()
    rule, params = lars_rule(varying, ROLES, **LARS), trial.start
    state, update = rule.transform.init(params), jax.jit(rule.transform.update)
    gradients = [
        lambda w, t=t: jax.tree.map(lambda x, n: gradient_of(x, n[t]), w, trial.noise)
        for t in range(UPDATES)
    ]
    # By name and rank they decay as by role: only what kind of bias it is differs.
    histories = in_a_train_state(lars(varying, **LARS), trial.start, gradients)
    assert roles_by_name(params) == {**ROLES, "bias": Role.NORM_OFFSET}
    for t, found in enumerate(histories):
        numbers = rule.numbers_at(t)
        changes, state = update(gradients[t](params), state, params, **numbers)
        params = jax.tree.map(jnp.add, params, changes)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, params
        )


@pytest.mark.long
def test_in_a_train_state_it_is_the_run_of_the_same_config(x64):
    """Over 50 updates of a network on two devices, against `jax.grad` of all examples at once."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "dtype": "float64",
            "batch_size": 16,
            "worker_batch_size": 4,
            "total_steps": 50,
            "devices": 2,
            "model.name": "cifar_resnet8",
            "model.width": 0.125,
            "model.normalization": "group",
            "learning_rate.reference_learning_rate": 0.5,
            "learning_rate.warmup_epochs": 0.1,
            **{f"optimizer.{name}": value for name, value in LARS.items()},
            "optimizer.name": "lars",
        }
    )
    plan, program, feed = build(resolve(config))
    step, state = program.compile_train_step(), program.start()
    batches = list(feed.train_batches().between(0, 50))

    def loss(params, batch):
        images = batch["image"].astype(np.float64).reshape(-1, 8, 8, 1)
        labels = batch["label"].reshape(-1)
        logits = plan.network.module.apply(
            {"params": params}, (images / 255 - 0.5) / 0.5, train=True
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.jit(jax.grad(loss))
    gradients = [functools.partial(gradient, batch=jax.device_get(batch)) for batch in batches]
    tx = lars(plan.learning_rate.schedule, **LARS)
    histories = in_a_train_state(tx, jax.device_get(state.params), gradients)
    for t, (batch, found) in enumerate(zip(batches, histories)):
        state, _ = step(state, batch, program.numbers.at(t))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
            found,
            jax.device_get(state.params),
        )


@pytest.mark.long
def test_examples_of_the_docstrings():
    failed, tried = doctest.testmod(library, optionflags=doctest.ELLIPSIS)
    assert (failed, tried > 15) == (0, True)
