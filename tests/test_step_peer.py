"""The PyTorch peer of benchmarks/step.py trains the same network in the same way as lbsgd."""

import jax
import numpy as np
import pytest
import step
import step_torch

torch = pytest.importorskip("torch")
UPDATES = 3
EPS = np.finfo(np.float64).eps


def layers_of(params) -> list[list[np.ndarray]]:
    """Kernels, scales and offsets of convolutions and norms in the order they run; the classifier.

    Blocks are named by stage and number; in one, shortcuts come last.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        where = not name.startswith("stem"), name
        kind = "classifier" if name.startswith("classifier") else name.rpartition("/")[2]
        found.setdefault(kind, []).append((where, np.asarray(leaf)))
    in_order = {
        kind: [leaf for _, leaf in sorted(x, key=lambda y: y[0])] for kind, x in found.items()
    }
    return [in_order[kind] for kind in ("kernel", "scale", "offset", "classifier")]


def copy_into(network, params) -> None:
    """Copies lbsgd's parameters into the peer's network."""
    kernels, scales, offsets, (bias, matrix) = layers_of(params)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    (dense,) = (m for m in network.modules() if isinstance(m, torch.nn.Linear))
    pairs = [
        (c.weight, k.transpose(3, 2, 0, 1)) for c, k in zip(convolutions, kernels, strict=True)
    ]
    pairs += [(n.weight, x) for n, x in zip(norms, scales, strict=True)]
    pairs += [(n.bias, x) for n, x in zip(norms, offsets, strict=True)]
    with torch.no_grad():
        for parameter, value in [*pairs, (dense.weight, matrix.T), (dense.bias, bias)]:
            assert tuple(parameter.shape) == value.shape
            parameter.copy_(torch.tensor(np.ascontiguousarray(value)))


def without_zeros(params):
    """Parameters of which no array is all 0, as the last scale of a block is at the start.

    Small, or the rate of 0.1 would be too large: chaos amplifies rounding.
    """
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: x if x.any() else random.uniform(0.05, 0.15, x.shape), params)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cifar_resnet8", 8),
        pytest.param("cifar_resnet20", 8, marks=pytest.mark.long),
        pytest.param("resnet18", 32, marks=pytest.mark.long),
        pytest.param("resnet50", 32, marks=pytest.mark.long),
    ],
)
def test_the_peer_makes_the_same_updates(name, size, x64):
    """One worker, so that both norms are of the whole minibatch; losses of three updates."""
    kn = 8
    parts, compiled, state, batch = step.our_step(name, size, kn, kn, "float64")
    state = state.replace(params=without_zeros(state.params))
    images = np.asarray(batch["image"]).reshape(kn, size, size, 3)
    peer = step_torch.Training(name, images, np.asarray(batch["label"]).reshape(kn), "float64")
    copy_into(peer.model, state.params)
    ours, theirs = [], []
    for update in range(UPDATES):
        state, metrics = compiled(state, batch, parts.program.numbers.at(update))
        ours.append(float(metrics["train_loss"]))
        theirs.append(float(peer.update()))
    assert len(set(ours)) == UPDATES
    # At most 54 layers there and back, in sums of at most 8 * 16 * 16 * 9 * 64 terms, whose
    # roundings add up as a random walk; a rate of 0.1 spreads them over the parameters.
    np.testing.assert_allclose(ours, theirs, rtol=108 * 1100 * UPDATES * EPS)


@pytest.mark.parametrize("name", step_torch.BLOCKS)
def test_all_peers_have_as_many_parameters(name):
    plan = step.build(step.resolve(step.synthetic_config(name, 32, 4, 4, "float32"))).plan
    ours = sum(x.size for x in jax.tree.leaves(plan.state_shapes.params))
    plain = step.PlainResNet(name, "float32")
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    flax = jax.eval_shape(plain.init, jax.random.key(0), image)["params"]
    with torch.device("meta"):
        network = step_torch.build_network(name)
    assert ours == sum(x.size for x in jax.tree.leaves(flax))
    assert ours == sum(p.numel() for p in network.parameters())


@pytest.mark.long
def test_a_machine_without_torch_leaves_the_peer_out(monkeypatch):
    monkeypatch.setattr(step_torch.importlib.util, "find_spec", lambda _: None)
    runs = step.compile_all("cifar_resnet8", 8, 4, 2, "float32")
    rates = step.take_turns(runs, 4, 1)
    assert {key: len(value) for key, value in rates.items()} == {"lbsgd": 1, "plain": 1}
