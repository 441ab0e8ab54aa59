"""LARS and LAMB in plain numpy, from the formulas of their papers, and a problem to try them on.

Nothing here comes from lbsgd but the roles, which say which arrays are kernels.
"""

import importlib
import importlib.util
import pathlib
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.models.roles import Role

UPDATES = 100
EPS = np.finfo(np.float64).eps
ROLES = {
    "conv": Role.KERNEL,
    "dense": Role.KERNEL,
    "bias": Role.BIAS,
    "scale": Role.NORM_SCALE,
    "offset": Role.NORM_OFFSET,
}
KERNELS = ("conv", "dense")
SHAPES = {"conv": (3, 3, 2, 4), "dense": (5, 3), "bias": (3,), "scale": (4,), "offset": (4,)}
# A ramp, a jump by five and back, and a wobble, so that no two neighbours are alike.
RATES = np.array(
    [(0.2 + 0.05 * t) * (5.0 if 40 <= t < 60 else 1.0) + 0.01 * (t % 3) for t in range(UPDATES)]
)


class Problem(NamedTuple):
    """Parameters to start from, and noise for each update."""

    start: dict[str, np.ndarray]
    noise: dict[str, np.ndarray]


def problem(seed: int = 0) -> Problem:
    """Kernels and gradients of very different sizes, as layers have them."""
    random = np.random.default_rng(seed)
    sizes = dict(zip(SHAPES, (0.3, 4.0, 0.5, 1.0, 0.1)))
    start = {name: sizes[name] * random.normal(size=shape) for name, shape in SHAPES.items()}
    noise = {
        name: 0.01 * sizes[name] * random.normal(size=(UPDATES, *shape))
        for name, shape in SHAPES.items()
    }
    return Problem(start, noise)


def gradient_of(w, noise):
    """Of 0.005 w^2 + noise w: it depends on w, so that an error would be carried on."""
    return 0.01 * w + noise


def schedule(update):
    return jnp.asarray(RATES)[update]


def train(optimizer, trial: Problem) -> tuple[dict[str, np.ndarray], object]:
    """The parameters after each update, `[updates, ...]`, and the last state."""

    def one(carry, t_and_noise):
        params, state = carry
        t, noise = t_and_noise
        gradient = jax.tree.map(gradient_of, params, noise)
        changes, state = optimizer.update(gradient, state, params, update_index=t)
        params = jax.tree.map(jnp.add, params, changes)
        return (params, state), params

    @jax.jit
    def run(params, noise):
        updates = jnp.arange(UPDATES, dtype=jnp.int32)
        (_, state), history = jax.lax.scan(one, (params, optimizer.init(params)), (updates, noise))
        return history, state

    return jax.device_get(run(*jax.tree.map(jnp.asarray, tuple(trial))))


def by_hand(step_of, trial: Problem, rates=RATES, **options) -> dict[str, np.ndarray]:
    """As `train`, with `step_of(kernel, **options)` -> a function (w, g, t, rates) -> w."""
    histories = {}
    for name, w in trial.start.items():
        step, history = step_of(kernel=name in KERNELS, **options), []
        for t in range(UPDATES):
            w = step(w, gradient_of(w, trial.noise[name][t]), t, rates)
            history.append(w)
        histories[name] = np.stack(history)
    return histories


def lars_by_hand(
    *,
    kernel,
    form="scaled",
    m=0.9,
    nesterov=False,
    correction=False,
    beta=0.0,
    decoupled=False,
    eta=0.01,
    eps=0.0,
):
    """lambda = eta |w| / (|g| + beta |w| + eps); scaled: v <- m c v + gamma lambda (g + beta w)."""
    coupled = beta if kernel and not decoupled else 0.0
    past = beta if kernel and decoupled else 0.0
    buffer = 0.0

    def step(w, g, t, rates):
        nonlocal buffer
        rate, last = rates[t], rates[max(t - 1, 0)]
        norm_w, norm_g = np.sqrt(np.sum(w * w)), np.sqrt(np.sum(g * g))
        trust = 1.0
        if kernel and norm_w > 0 and norm_g > 0:
            trust = eta * norm_w / (norm_g + coupled * norm_w + eps)
        d = g + coupled * w
        if form == "scaled":
            new = rate * trust * d
            buffer = m * (rate / last if correction else 1.0) * buffer + new
            change = new + m * buffer if nesterov else buffer
        else:
            buffer = m * buffer + d
            change = rate * trust * (d + m * buffer if nesterov else buffer)
        return w - change - rate * past * w

    return step


def lamb_by_hand(*, kernel, b1=0.9, b2=0.999, eps=1e-6, decay=0.0, clip=()):
    """m, v, their bias corrections with t from 1; r = mh / (sqrt(vh) + eps); u = r + decay w."""
    m, v = 0.0, 0.0

    def step(w, g, t, rates):
        nonlocal m, v
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        u = (m / (1 - b1 ** (t + 1))) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps)
        if not kernel:
            return w - rates[t] * u
        u = u + decay * w
        norm_w, norm_u = np.sqrt(np.sum(w * w)), np.sqrt(np.sum(u * u))
        phi = min(max(norm_w, clip[0]), clip[1]) if clip else norm_w
        return w - rates[t] * (phi / norm_u if norm_w > 0 and norm_u > 0 else 1.0) * u

    return step


def assert_alike(found, expected, size=None):
    """To rounding: twenty an update, of numbers up to ten times the largest (momentum)."""
    for name, history in expected.items():
        atol = 20 * UPDATES * EPS * 10 * max(np.abs(history).max(), size or 0.0)
        np.testing.assert_allclose(found[name], history, rtol=0, atol=atol, err_msg=name)


def furthest(a, b) -> float:
    """The largest difference between two histories, relative to the largest number."""
    return max(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max() for name in a)


def timm_optimizer(module: str, monkeypatch):
    """A module of timm.optim, without timm itself, which asks for much that is not needed here."""
    pytest.importorskip("torch")
    found = importlib.util.find_spec("timm")
    if not found:
        pytest.skip("timm is not there; `make oracles` installs it")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(pathlib.Path(found.submodule_search_locations[0]) / "optim")]
    monkeypatch.setitem(sys.modules, "timm_optim", package)
    return importlib.import_module(f"timm_optim.{module}")


def train_in_torch(
    make, trial: Problem, decay: float, scale=1.0, **options
) -> dict[str, np.ndarray]:
    """As `train`, by an optimizer of PyTorch: kernels decay, the others do not."""
    import torch

    params = {name: torch.tensor(w, requires_grad=True) for name, w in trial.start.items()}
    groups = [
        {"params": [params[name] for name in KERNELS], "weight_decay": decay},
        {"params": [params[n] for n in params if n not in KERNELS], "weight_decay": 0.0},
    ]
    optimizer = make(groups, lr=1.0, **options)
    history = []
    for t in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = scale * RATES[t]
        for name, w in params.items():
            w.grad = gradient_of(w.detach(), torch.tensor(trial.noise[name][t]))
        optimizer.step()
        history.append({name: w.detach().numpy().copy() for name, w in params.items()})
    return {name: np.stack([h[name] for h in history]) for name in params}
