"""Weight decay: where it enters, and which parameters it applies to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lbsgd.models.networks import build_model
from lbsgd.models.resnet import IMAGENET, named_architecture
from lbsgd.models.roles import Role, split_roles, with_role
from lbsgd.optim import lars, sgd
from lbsgd.optim.masks import decayed
from lbsgd.optim.weight_decay import coupled_weight_decay, decoupled_weight_decay

EPS = np.finfo(np.float64).eps
ROLES = {"kernel": Role.KERNEL, "bias": Role.BIAS}
MASK = {"kernel": True, "bias": False}
RATES = (0.1, 0.3, 0.02)


def schedule(update):
    return jnp.asarray(RATES)[update]


def arrays(*seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=4) for name in ROLES}


# --- one transform ---------------------------------------------------------------------------


def test_coupled_decay_adds_lambda_w_to_the_gradient(x64):
    g, w = arrays(0), arrays(1)
    found, _ = coupled_weight_decay(MASK).update(g, (), w, weight_decay=0.05)
    np.testing.assert_allclose(found["kernel"], g["kernel"] + 0.05 * w["kernel"], rtol=4 * EPS)
    np.testing.assert_array_equal(found["bias"], g["bias"])


@pytest.mark.parametrize("update", range(len(RATES)))
def test_decoupled_decay_takes_eta_lambda_w_off_the_parameters(x64, update):
    change, w = arrays(0), arrays(1)
    numbers = {"learning_rate": RATES[update], "weight_decay": 0.05}
    found, _ = decoupled_weight_decay(MASK).update(change, (), w, **numbers)
    expected = change["kernel"] - RATES[update] * 0.05 * w["kernel"]
    np.testing.assert_allclose(found["kernel"], expected, rtol=0, atol=8 * EPS)
    np.testing.assert_array_equal(found["bias"], change["bias"])


# --- in the chain ----------------------------------------------------------------------------


def train(gradients, **options) -> dict[str, np.ndarray]:
    """Parameters after the updates."""
    optimizer = sgd(schedule, roles=ROLES, momentum=0.9, **options)
    params = arrays(1)
    state = optimizer.init(params)
    for update, gradient in enumerate(gradients):
        changes, state = optimizer.update(gradient, state, params, update_index=update)
        params = jax.tree.map(jnp.add, params, changes)
    return jax.device_get(params)


def by_hand(gradients, decay, form) -> dict[str, np.ndarray]:
    """Equation (9): coupled decay goes through the momentum, decoupled past it."""
    params = arrays(1)
    for name, decays in MASK.items():
        w, u = params[name], np.zeros(4)
        lam = decay if decays else 0.0
        for rate, gradient in zip(RATES, gradients):
            u = 0.9 * u + gradient[name] + (lam * w if form == "coupled" else 0.0)
            w = w - rate * u - (rate * lam * w if form == "decoupled" else 0.0)
        params[name] = w
    return params


@pytest.mark.parametrize("momentum_form", ["rate_outside", "rate_inside"])
@pytest.mark.parametrize("form", ["coupled", "decoupled"])
def test_decay_in_the_chain(x64, form, momentum_form):
    gradients = [arrays(2, t) for t in range(len(RATES))]
    options = {"weight_decay": 0.05, "weight_decay_form": form, "momentum_form": momentum_form}
    found, expected = train(gradients, **options), by_hand(gradients, 0.05, form)
    for name in ROLES:
        # Ten roundings in each of three updates, of numbers below ten.
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=300 * EPS)


@pytest.mark.parametrize("form", ["coupled", "decoupled"])
def test_scaling_the_loss_does_not_scale_the_decay(x64, form):
    """Remark 1: what decay changes is the same for a loss scaled by 1 and by 1000.

    The update is linear in (gradient, decay), so the difference that decay makes in one update
    must not depend on the gradient at all.
    """
    g = arrays(2)
    made = []
    for scale in (0.0, 1.0, 1000.0):
        scaled = [{name: scale * x for name, x in g.items()}]
        with_decay, without = (
            train(scaled, weight_decay=decay, weight_decay_form=form) for decay in (0.05, 0.0)
        )
        made.append(with_decay["kernel"] - without["kernel"])
    w = arrays(1)["kernel"]
    for difference in made:
        # The parameters are up to 0.1 * 1000 |g| when the two are subtracted.
        atol = 10 * EPS * (1 + 100 * np.abs(g["kernel"]).max())
        np.testing.assert_allclose(difference, -RATES[0] * 0.05 * w, rtol=0, atol=atol)


# --- which parameters ------------------------------------------------------------------------


def roles_of(module, *inputs, **options) -> tuple[dict, dict]:
    """Shapes and roles of a module's parameters; nothing is compiled."""
    init = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))
    return split_roles(init["params"])


def flat(tree) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


UNTIL_D = [name for name in IMAGENET if not name.endswith("d")]
NETWORKS = [
    *((name, "batch") for name in (*UNTIL_D, "resnet50d", "cifar_resnet8", "cifar_resnet110")),
    *((name, kind) for name in ("resnet18", "cifar_resnet20") for kind in ("group", "none")),
]


@pytest.mark.parametrize(("name", "normalization"), NETWORKS)
def test_kernels_decay_and_norm_parameters_and_biases_do_not(name, normalization):
    """By shape, which says what a parameter is: kernels have an input and an output axis."""
    model = build_model(name, num_classes=10, normalization=normalization)
    params, roles = roles_of(model, jnp.zeros((1, 32, 32, 3)), train=False)
    flags = flat(decayed(roles))
    for path, shape in flat(params).items():
        assert flags[path] == (shape.ndim > 1), path
    architecture = named_architecture(name)
    blocks, stages = sum(architecture.blocks), len(architecture.blocks)
    projections = 0
    if architecture.shortcut != "pad":
        projections = stages if architecture.bottleneck else stages - 1
    stem = 3 if architecture.stem == "deep" else 1
    convolutions = stem + blocks * (3 if architecture.bottleneck else 2) + projections
    classifier = 1
    assert sum(flags.values()) == convolutions + classifier
    # A scale and an offset for each convolution, or a bias, and the classifier's bias.
    of_convolution = 1 if normalization == "none" else 2
    assert len(flags) - sum(flags.values()) == of_convolution * convolutions + 1


class MisleadingNames(nn.Module):
    """A kernel called scale, a norm scale called kernel, and so on."""

    @nn.compact
    def __call__(self, x):
        kernel_init, ones = nn.initializers.normal(1.0), nn.initializers.ones
        scale = self.param("scale", with_role(Role.KERNEL, kernel_init), (3, 2))
        kernel = self.param("kernel", with_role(Role.NORM_SCALE, ones), (2,))
        weight = self.param("weight", with_role(Role.NORM_OFFSET, ones), (2,))
        # Not even the shape decides: a bias may be a matrix.
        w = self.param("w", with_role(Role.BIAS, ones), (1, 2))
        return (x @ scale) * kernel[None] + weight[None] + w


def test_names_do_not_decide():
    _, roles = roles_of(MisleadingNames(), jnp.zeros((1, 3)))
    assert decayed(roles) == {"scale": True, "kernel": False, "weight": False, "w": False}


@pytest.mark.parametrize("form", ["coupled", "decoupled"])
@pytest.mark.parametrize("make", [sgd, lars])
@pytest.mark.parametrize("those", [("kernel", "bias"), ("norm scale", "norm offset")])
def test_those_roles_decay_that_are_asked_for(make, form, those):
    """Without a gradient nothing else moves a parameter."""
    roles = {str(role): role for role in Role}
    params, zero = ({name: jnp.full(4, x) for name in roles} for x in (1.0, 0.0))
    decay = {"weight_decay": 0.5, "weight_decay_form": form, "decayed_roles": those}
    optimizer = make(0.5, roles=roles, **decay)
    changes, _ = optimizer.update(zero, optimizer.init(params), params)
    assert {name for name, change in changes.items() if np.any(change)} == set(those)


def test_the_chain_decays_by_role():
    """One update without a gradient moves what decays and leaves the rest bitwise alone."""
    module = MisleadingNames()
    params, roles = split_roles(module.init(jax.random.key(0), jnp.zeros((1, 3)))["params"])
    for form in ("coupled", "decoupled"):
        optimizer = sgd(
            lambda update: jnp.float32(0.5), roles=roles, weight_decay=0.5, weight_decay_form=form
        )
        zero = jax.tree.map(jnp.zeros_like, params)
        changes, _ = optimizer.update(zero, optimizer.init(params), params, update_index=0)
        np.testing.assert_allclose(changes["scale"], -0.25 * params["scale"], rtol=1e-6)
        for name in ("kernel", "weight", "w"):
            assert not np.any(changes[name]), (form, name)
