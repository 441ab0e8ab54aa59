"""Optimizers of a dotted name: optax's, as in their own runs, and others with their mistakes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layerwise_by_hand import KERNELS, RATES, ROLES, problem

from lbsgd.config.dotted import load
from lbsgd.optim.chain import build_optimizer
from lbsgd.optim.explain import decaying, explain_optimizer, with_trust_ratio
from lbsgd.optim.stock import check_update, rule_of
from lbsgd.run.config import default_config, resolve
from lbsgd.system.errors import ConfigError

UPDATES = 20
MASK = {name: name in KERNELS for name in ROLES}
counter = itertools.count()


def schedule(update):
    return 0.01 * jnp.asarray(RATES)[update]


def of_name(name, roles=ROLES, **keys):
    keys = {"options": {}, "weight_decay": 0.0, "weight_decay_form": "coupled"} | keys
    return rule_of(
        schedule,
        roles,
        named=load("optimizer.name", name),
        decayed_roles=("kernel",),
        **keys,
    )


def by_rule(rule, trial):
    """The parameters after each update, whose numbers the compiled update is told."""

    @jax.jit
    def one(params, state, noise, numbers, t):
        gradient = jax.tree.map(lambda w, n: 0.01 * w + n, params, noise)
        changes, state = rule.transform.update(gradient, state, params, update_index=t, **numbers)
        return jax.tree.map(jnp.add, params, changes), state

    params = jax.tree.map(jnp.asarray, trial.start)
    state, history = rule.transform.init(params), []
    for t in range(UPDATES):
        noise = {name: n[t] for name, n in trial.noise.items()}
        params, state = one(params, state, noise, rule.numbers_at(t), jnp.int32(t))
        history.append(jax.device_get(params))
    assert one._cache_size() == 1
    return {name: np.stack([h[name] for h in history]) for name in ROLES}


def by_optax(transform, trial):
    """The same in a loop of optax's own, which counts for itself."""

    @jax.jit
    def one(params, state, noise):
        gradient = jax.tree.map(lambda w, n: 0.01 * w + n, params, noise)
        changes, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, changes), state

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = jax.tree.map(jnp.asarray, trial.start)
        state, history = transform.init(params), []
        for t in range(UPDATES):
            noise = {name: n[t] for name, n in trial.noise.items()}
            params, state = one(params, state, noise)
            history.append(jax.device_get(params))
    return {name: np.stack([h[name] for h in history]) for name in ROLES}


STOCK = {
    "optax:lion": (
        {"b1": 0.8},
        lambda **o: optax.lion(schedule, weight_decay=0.1, mask=MASK, **o),
    ),
    "optax:adamw": (
        {"eps": 1e-3, "nesterov": True},
        lambda **o: optax.adamw(schedule, weight_decay=0.1, mask=MASK, **o),
    ),
    "optax.contrib:muon": (
        {"ns_steps": 3},
        lambda **o: optax.contrib.muon(schedule, weight_decay=0.1, weight_decay_mask=MASK, **o),
    ),
    # Without decay of their own: it is coupled here.
    "optax:adafactor": (
        {"min_dim_size_to_factor": 2},
        lambda **o: optax.chain(
            optax.add_decayed_weights(0.1, MASK), optax.adafactor(schedule, **o)
        ),
    ),
    "optax:sgd": (
        {"momentum": 0.9},
        lambda **o: optax.chain(optax.add_decayed_weights(0.1, MASK), optax.sgd(schedule, **o)),
    ),
    # Directions, without a rate.
    "optax:scale_by_adam": (
        {"b2": 0.9},
        lambda **o: optax.chain(
            optax.add_decayed_weights(0.1, MASK),
            optax.scale_by_adam(**o),
            optax.scale_by_learning_rate(schedule),
        ),
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in list(STOCK)[:1] else pytest.mark.long)
        for name in STOCK
    ],
)
def test_it_is_optax_s_own_run_under_a_schedule(x64, name):
    options, theirs = STOCK[name]
    found = by_rule(of_name(name, options=options, weight_decay=0.1), problem())
    expected = by_optax(theirs(**options), problem())
    for key, history in expected.items():
        scale = np.abs(history).max()
        np.testing.assert_allclose(found[key], history, rtol=0, atol=1e-12 * scale, err_msg=key)
        assert np.abs(np.diff(history, axis=0)).max() > 0


def one_update(rule, dtype=np.float32):
    params = {name: jnp.asarray(w, dtype) for name, w in problem().start.items()}
    gradient = jax.tree.map(jnp.ones_like, params)
    numbers = rule.numbers_at(0)
    state = rule.transform.init(params)
    update = jax.jit(rule.transform.update)
    return params, update(gradient, state, params, update_index=0, **numbers)


def test_decay_of_ours_is_in_the_form_asked_for(x64):
    """Past a direction that does not see it: that of signs."""
    rate = float(schedule(0))
    for form in ("coupled", "decoupled"):
        params, (changes, _) = one_update(
            of_name("optax:scale_by_sign", weight_decay=0.1, weight_decay_form=form), np.float64
        )
        for name, w in params.items():
            direction, decay = 1.0, 0.0
            if name in KERNELS and form == "coupled":
                direction = np.sign(1.0 + 0.1 * w)
            elif name in KERNELS:
                decay = 0.1 * w
            expected = -rate * direction - rate * decay
            np.testing.assert_allclose(changes[name], expected * np.ones_like(w), rtol=1e-12)


@pytest.mark.parametrize("name", ["optax:adamw", "optax:adafactor", "optax:scale_by_adam"])
def test_types_stay(name):
    """Under a rate of float32, and strict promotion, which optax's own do not pass."""
    rule = of_name(name, weight_decay=0.1)
    params = {name: jnp.zeros(w.shape, jnp.bfloat16) for name, w in problem().start.items()}
    before = jax.eval_shape(rule.transform.init, params)
    changes, after = jax.eval_shape(
        rule.transform.update, params, before, params, update_index=0, **rule.numbers_at(0)
    )
    assert {x.dtype for x in jax.tree.leaves(changes)} == {jnp.dtype(jnp.bfloat16)}
    types = [jax.tree.map(lambda x: (x.dtype, x.weak_type), state) for state in (before, after)]
    assert types[0] == types[1]


# --- what others write -----------------------------------------------------------------------

CODE = """\
import jax
import jax.numpy as jnp
import optax

def by_role(learning_rate, roles):
    kept = jax.tree.map(lambda role: role.value == "bias", roles)
    return optax.chain(optax.masked(optax.set_to_zero(), kept), optax.scale(-learning_rate))

def all_decay(learning_rate, weight_decay):
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale(-learning_rate))

def none(learning_rate):
    return None

def raises(learning_rate):
    raise RuntimeError("on purpose")

def raises_later(learning_rate):
    def update(gradient, state, params=None):
        return jnp.zeros(2) @ jnp.zeros(3), state
    return optax.GradientTransformation(lambda params: (), update)

def other_shapes(learning_rate):
    def update(gradient, state, params=None):
        return jax.tree.map(lambda g: g[None], gradient), state
    return optax.GradientTransformation(lambda params: (), update)

def other_state(learning_rate):
    def update(gradient, state, params=None):
        return gradient, state + 0.5
    return optax.GradientTransformation(lambda params: jnp.int32(0), update)

def needs(learning_rate, depth):
    return optax.sgd(learning_rate)

def scheduled():
    schedule = optax.cosine_decay_schedule(0.1, 100)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

def warmed_up():
    return optax.sgd(optax.linear_schedule(0.0, 0.1, 100), momentum=0.9)

def called_lr(lr=1e-3):
    return optax.adam(lr)

def called_step_size(step_size=1e-3, **others):
    return optax.lion(step_size, weight_decay=0.1)

def ignores_it(learning_rate):
    return scheduled()

def direction(lr_of_nothing=0.1):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.centralize(), optax.trace(0.9))

def of_its_own_tree(roles):
    return optax.masked(optax.scale_by_adam(), jax.tree.map(lambda role: True, roles))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of an own name in the current folder."""
    name = f"optimizers_of_others_{next(counter)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


def test_it_is_given_roles_if_it_asks(module):
    _, (changes, _) = one_update(of_name(f"{module}:by_role"))
    still = {name for name, change in changes.items() if not np.any(change)}
    assert still == {name for name, role in ROLES.items() if role.value == "bias"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "line 12) returns None, which is no optax transformation"),
        ("raises", "line 16: RuntimeError: on purpose"),
        ("raises_later", "line 20: TypeError: "),
        ("other_shapes", "line 23) returns changes of other shapes than the parameters have"),
        ("other_state", "line 28) returns a state of other shapes or types"),
        ("needs", "line 33) needs 'depth'; set optimizer.options.depth"),
    ],
)
def test_a_mistake_in_it_is_a_line_that_names_it(module, name, says):
    params = {
        name: jax.ShapeDtypeStruct(w.shape, np.float32) for name, w in problem().start.items()
    }
    with pytest.raises(ConfigError) as error:
        check_update(of_name(f"{module}:{name}"), params)
    text = str(error.value)
    assert text.startswith(f"optimizer.name='{module}:{name}'")
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("scheduled", 36, "take learning_rate as an argument (it is told this update's rate"),
        ("warmed_up", 40, "take learning_rate as an argument"),
        ("called_lr", 43, "call 'lr' learning_rate"),
        ("called_step_size", 46, "call 'step_size' learning_rate"),
    ],
)
def test_an_optimizer_is_no_direction(module, name, line, says):
    """Which lbsgd negates: it would climb."""
    with pytest.raises(ConfigError) as error:
        of_name(f"{module}:{name}")
    text = str(error.value)
    assert f"py, line {line}) gives changes against the gradient" in text
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "name",
    ["optax:scale_by_adam", "optax:scale_by_lion", "direction", "of_its_own_tree", "ignores_it"],
)
def test_a_direction_and_what_takes_the_rate_are_taken(module, name):
    """And what needs the tree of the network, with which it cannot be probed."""
    rule = of_name(name if ":" in name else f"{module}:{name}")
    check_update(rule, problem().start)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"b3": 0.9}, "has no option 'b3'; the nearest that it has is 'b"),
        ({"learning_rate": 0.1}, "learning_rate is set by the keys of learning_rate"),
        ({"weight_decay": 0.1}, r"weight_decay is set by optimizer\.weight_decay"),
    ],
)
def test_options_that_it_cannot_have(options, says):
    with pytest.raises(ConfigError, match=says):
        one_update(of_name("optax:lion", options=options))


# --- in a config -----------------------------------------------------------------------------


def config_of(name, **keys):
    config = default_config()
    config.update_from_flattened_dict({"optimizer.name": name, **keys})
    return resolve(config).optimizer


def test_a_config_names_it(x64):
    config = config_of("optax:lion", **{"optimizer.options": {"b1": 0.8}})
    rule = build_optimizer(schedule, ROLES, **config)
    expected = of_name("optax:lion", options={"b1": 0.8}, weight_decay=1e-4)
    _, (found, _) = one_update(rule, np.float64)
    _, (wanted, _) = one_update(expected, np.float64)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert set(rule.numbers) == {"learning_rate"}


@pytest.mark.parametrize(
    ("name", "keys", "says", "decays"),
    [
        (
            "optax:lion",
            {"optimizer.options": {"b1": 0.8}},
            "optimizer: optax:lion(b1=0.8), told the rate; weight decay 0.0001 on 2 of 5 parameter "
            "arrays by its own weight_decay (which: by mask)",
            set(KERNELS),
        ),
        (
            "optax:lion",
            {"optimizer.options": {"mask": None}},
            "optimizer: optax:lion(mask=None), told the rate; weight decay 0.0001 on 5 of 5 "
            "parameter arrays by its own weight_decay (which: by mask)",
            set(ROLES),
        ),
        (
            "optax:scale_by_adam",
            {"optimizer.weight_decay_form": "decoupled"},
            "optimizer: optax:scale_by_adam(), a direction, times the rate; decoupled weight decay "
            "0.0001 on 2 of 5 parameter arrays",
            set(KERNELS),
        ),
        (
            "optax:lion",
            {"optimizer.weight_decay": 0.0},
            "optimizer: optax:lion(), told the rate; no weight decay",
            set(),
        ),
    ],
)
def test_it_is_explained(name, keys, says, decays):
    config = config_of(name, **keys)
    assert explain_optimizer(config, ROLES) == says
    assert {key for key, flag in decaying(config, ROLES).items() if flag} == decays
    assert not any(with_trust_ratio(config, ROLES).values())


def test_what_takes_no_mask_decays_as_a_whole(module):
    config = config_of(f"{module}:all_decay")
    assert all(decaying(config, ROLES).values())
    assert "on 5 of 5 parameter arrays" in explain_optimizer(config, ROLES)
    plain = of_name(f"{module}:all_decay")
    decayed = of_name(f"{module}:all_decay", weight_decay=0.1)
    changes = [one_update(rule)[1][0] for rule in (plain, decayed)]
    assert all(np.any(changes[0][name] != changes[1][name]) for name in ROLES)
