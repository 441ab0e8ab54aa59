"""SGD against PyTorch's, 50 updates in float64 with a rate that changes every update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.models.roles import Role
from lbsgd.optim import sgd

torch = pytest.importorskip("torch")

UPDATES = 50
SHAPES = {"kernel": (4, 3), "bias": (3,)}
ROLES = {"kernel": Role.KERNEL, "bias": Role.BIAS}
EPS = np.finfo(np.float64).eps


def rate(update: int) -> float:
    """A ramp with a jump by ten in the middle and a wobble, so that no two are alike."""
    return (0.01 + 0.002 * update) * (10.0 if 20 <= update < 30 else 1.0) + 1e-4 * (update % 3)


RATES = np.array([rate(update) for update in range(UPDATES)])


@pytest.fixture(scope="module")
def start():
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def noise():
    random = np.random.default_rng(1)
    return {name: random.normal(size=(UPDATES, *shape)) for name, shape in SHAPES.items()}


def gradient_of(w, noise):
    """Of 0.05 w^2 + noise w: it depends on the parameters, so that an error would be carried on."""
    return 0.1 * w + noise


def train(start, noise, **options) -> dict[str, np.ndarray]:
    """Parameters after every update, by lbsgd."""
    optimizer = sgd(lambda update: jnp.asarray(RATES)[update], roles=ROLES, **options)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    history = []

    @jax.jit
    def one(params, state, update):
        gradients = jax.tree.map(lambda w, n: gradient_of(w, n[update]), params, noise_on_device)
        changes, state = optimizer.update(gradients, state, params, update_index=update)
        return jax.tree.map(jnp.add, params, changes), state

    noise_on_device = jax.tree.map(jnp.asarray, noise)
    for update in range(UPDATES):
        params, state = one(params, state, jnp.int32(update))
        history.append(jax.device_get(params))
    return {name: np.stack([h[name] for h in history]) for name in SHAPES}


def train_in_torch(start, noise, *, momentum, nesterov, weight_decay) -> dict[str, np.ndarray]:
    """The same by torch.optim.SGD, the bias in a parameter group without decay."""
    params = {name: torch.tensor(w, requires_grad=True) for name, w in start.items()}
    groups = [
        {"params": [params["kernel"]], "weight_decay": weight_decay},
        {"params": [params["bias"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=nesterov)
    history = []
    for update in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = RATES[update]
        for name, w in params.items():
            w.grad = gradient_of(w.detach(), torch.tensor(noise[name][update]))
        optimizer.step()
        history.append({name: w.detach().numpy().copy() for name, w in params.items()})
    return {name: np.stack([h[name] for h in history]) for name in SHAPES}


def assert_alike(found, expected):
    """To rounding: ten a update, of numbers up to ten times the largest parameter (momentum)."""
    for name, history in expected.items():
        atol = 10 * UPDATES * EPS * 10 * np.abs(history).max()
        np.testing.assert_allclose(found[name], history, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("form", ["rate_outside", "rate_inside"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(
    ("momentum", "nesterov"),
    [
        pytest.param(0.0, False, id="no momentum"),
        pytest.param(0.9, False, id="momentum"),
        pytest.param(0.9, True, id="nesterov"),
    ],
)
def test_sgd_is_torch_sgd(x64, start, noise, momentum, nesterov, weight_decay, form):
    """Both forms of momentum, (10) with its correction, are what PyTorch computes."""
    options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    found = train(start, noise, momentum_form=form, **options)
    assert_alike(found, train_in_torch(start, noise, **options))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("form", ["rate_outside", "rate_inside"])
def test_decoupled_decay_is_taken_off_before_a_step_without_decay(
    x64, start, noise, form, nesterov
):
    """AdamW's p <- p - lr lambda p, then torch.optim.SGD on the gradient at the old p."""
    weight_decay = 0.05
    found = train(
        start,
        noise,
        momentum=0.9,
        nesterov=nesterov,
        momentum_form=form,
        weight_decay=weight_decay,
        weight_decay_form="decoupled",
    )
    params = {name: torch.tensor(w, requires_grad=True) for name, w in start.items()}
    optimizer = torch.optim.SGD(params.values(), lr=1.0, momentum=0.9, nesterov=nesterov)
    for update in range(UPDATES):
        optimizer.param_groups[0]["lr"] = RATES[update]
        for name, w in params.items():
            w.grad = gradient_of(w.detach(), torch.tensor(noise[name][update]))
        with torch.no_grad():
            params["kernel"].mul_(1 - RATES[update] * weight_decay)
        optimizer.step()
    last = {name: history[-1:] for name, history in found.items()}
    assert_alike(last, {name: w.detach().numpy()[None] for name, w in params.items()})
