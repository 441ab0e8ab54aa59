"""What every optimizer of the config keeps to, and what a config cannot mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layerwise_by_hand import KERNELS, ROLES, SHAPES

from lbsgd.models.roles import Role
from lbsgd.optim import lamb, lars, sgd
from lbsgd.optim.chain import build_optimizer
from lbsgd.optim.keys import KEYS
from lbsgd.optim.masks import scaled
from lbsgd.run.config import default_config as defaults
from lbsgd.run.config import resolve
from lbsgd.system.errors import ConfigError

OPTIMIZERS = {
    "sgd": {},
    "sgd, rate inside": {"momentum_form": "rate_inside"},
    "lars, unscaled": {"name": "lars"},
    "lars, scaled": {"name": "lars", "momentum_form": "rate_inside"},
    "lars, decoupled": {"name": "lars", "weight_decay_form": "decoupled"},
    "lars without momentum": {"name": "lars", "momentum": 0.0},
    "lamb": {"name": "lamb"},
    # What it does with natural gradients.
    "spngd": {"name": "spngd", "weight_rescaling": "always"},
    "spngd, larger": {"name": "spngd", "weight_rescaling": "larger"},
}


def schedule(update):
    return 0.1 + 0.01 * jnp.asarray(update).astype(jnp.result_type(float))


def rule_of_config(rate=schedule, **keys):
    config = defaults()
    config.optimizer.update(keys)
    return build_optimizer(rate, ROLES, **resolve(config).optimizer)


def of_config(**keys):
    return told(rule_of_config(**keys))


def told(rule):
    """The rule's transform, which is told the numbers of each update as in a run."""

    def update(gradient, state, params, *, update_index):
        numbers = rule.numbers_at(update_index)
        return rule.transform.update(gradient, state, params, update_index=update_index, **numbers)

    return optax.GradientTransformationExtraArgs(rule.transform.init, update)


@pytest.fixture(params=OPTIMIZERS.values(), ids=OPTIMIZERS)
def keys(request):
    return request.param


def arrays(seed, dtype=np.float32):
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def described(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), tree)


def test_all_that_the_config_names_are_here():
    names = {keys.get("name", "sgd") for keys in OPTIMIZERS.values()}
    assert names == set(KEYS["optimizer.name"].choices)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_types_and_shapes_stay(keys, dtype):
    """Of changes as of parameters, and of the state through an update, so that it can be kept."""
    optimizer, w = of_config(**keys), arrays(0, dtype)
    state = optimizer.init(w)
    changes, after = optimizer.update(arrays(1, dtype), state, w, update_index=0)
    assert described(changes) == described(w)
    assert described(after) == described(state)


def test_the_update_index_is_the_only_counter(keys):
    """Two updates from one state, under one index: the same, by an integer and compiled."""
    optimizer, w, g = of_config(**keys), arrays(0), arrays(1)
    _, state = optimizer.update(g, optimizer.init(w), w, update_index=0)
    assert not any(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(state))
    update = jax.jit(optimizer.update)
    for t in (1, 1000):
        first, _ = optimizer.update(g, state, w, update_index=t)
        traced, _ = update(g, state, w, update_index=jnp.int32(t))
        for name in SHAPES:
            np.testing.assert_allclose(traced[name], first[name], rtol=1e-5, atol=1e-6)


OTHER_NUMBERS = {
    "momentum": 0.5,
    "weight_decay": 0.3,
    "trust_coefficient": 0.7,
    "beta1": 0.0,
    "beta2": 0.5,
    "epsilon": 0.1,
}


def traced(rule) -> str:
    w = arrays(0)
    update = jax.make_jaxpr(rule.transform.update)
    return str(update(w, rule.transform.init(w), w, update_index=1, **rule.numbers_at(1)))


def test_numbers_are_no_part_of_the_program(keys):
    """But which of them there are is: 0 leaves its term out."""
    own = {k: v for k, v in OTHER_NUMBERS.items() if keys.get(k) != 0.0}
    program = traced(rule_of_config(**keys))
    assert traced(rule_of_config(lambda t: jnp.float32(3.0), **keys | own)) == program
    assert traced(rule_of_config(**keys | {"weight_decay": 0.0})) != program


def test_clips_are_numbers_too():
    first, second = (
        traced(rule_of_config(name="lamb", norm_clip=clip)) for clip in ((0.0, 1.0), (2.0, 3.0))
    )
    assert first == second != traced(rule_of_config(name="lamb"))


def test_only_kernels_decay_and_have_trust_ratios(keys):
    optimizer, w, g = of_config(**keys), arrays(0), arrays(1)
    plain = of_config(**keys | {"weight_decay": 0.0})
    decaying = of_config(**keys | {"weight_decay": 0.5})
    changes, state = optimizer.update(g, optimizer.init(w), w, update_index=0)
    ratios = optax.tree.get(state, "trust_ratios")
    assert (ratios is None) == (keys.get("name", "sgd") in ("sgd", "spngd"))
    made = [o.update(g, o.init(w), w, update_index=0)[0] for o in (plain, decaying)]
    for name in ROLES:
        decays = bool(np.any(made[0][name] != made[1][name]))
        assert decays == (name in KERNELS), name
        assert not np.array_equal(changes[name], np.zeros_like(w[name]))
        if ratios is not None:
            assert (ratios[name] != 1) == (name in KERNELS), name


def test_scaled_is_by_role():
    assert scaled({role: role for role in Role}) == {role: role is Role.KERNEL for role in Role}


@pytest.mark.parametrize(
    ("name", "make", "own"),
    [
        ("sgd", sgd, {"momentum": 0.5, "nesterov": False, "momentum_form": "rate_inside"}),
        ("lars", lars, {"momentum_form": "rate_outside", "trust_coefficient": 0.5}),
        (
            "lars",
            lars,
            {"momentum_form": "rate_inside", "momentum_correction": True, "trust_epsilon": 0.1},
        ),
        ("lars", lars, {"trust_at_zero": "formula", "momentum_form": "rate_outside"}),
        (
            "lamb",
            lamb,
            {"beta1": 0.5, "beta2": 0.7, "epsilon": 0.1, "norm_clip": (0.1, 0.2)},
        ),
    ],
)
def test_each_takes_its_own_keys(name, make, own):
    """As the function that it names makes of the same arguments."""
    others = {"nesterov": False, "weight_decay": 0.1, "weight_decay_form": "decoupled"}
    found = of_config(name=name, **others | own)
    if make is lamb:
        others = {"weight_decay": 0.1}
    expected = make(schedule, roles=ROLES, **others | own)
    w, state, like = arrays(0), found.init(arrays(0)), expected.init(arrays(0))
    for t in range(3):
        changes, state = found.update(arrays(t + 1), state, w, update_index=t)
        wanted, like = expected.update(arrays(t + 1), like, w, update_index=t)
    for change, want in zip(jax.tree.leaves(changes), jax.tree.leaves(wanted)):
        np.testing.assert_array_equal(change, want)


LAMB = OPTIMIZERS["lamb"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({**LAMB, "norm_clip": (1.0,)}, r"norm_clip must be \(\) or \(least, greatest\)"),
        ({**LAMB, "norm_clip": (2.0, 1.0)}, "norm_clip"),
        ({**LAMB, "norm_clip": (0.0, 0.0)}, "norm_clip"),
        ({**LAMB, "epsilon": 0.0}, "epsilon must be at least 1e-30"),
        ({"name": "lars", "trust_coefficient": 0.0}, "trust_coefficient must be positive"),
        ({"name": "lars", "trust_epsilon": -1.0}, "trust_epsilon must be finite and not negative"),
        ({**LAMB, "beta2": 1.0}, "beta2 must be at least 0 and less than 1"),
        ({"name": "lars", "trust_at_zero": "0"}, "trust_at_zero '0'; known: one, formula"),
        ({"name": "adam"}, "unknown optimizer.name 'adam'; known: sgd, lars, lamb, spngd, or "),
    ],
)
def test_what_means_nothing_is_an_error(keys, says):
    with pytest.raises(ConfigError, match=says):
        of_config(**keys)


def test_no_such_optimizer():
    with pytest.raises(KeyError):
        build_optimizer(schedule, ROLES, name="adam")
