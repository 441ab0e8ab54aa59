"""Natural gradients that devices share out, against those of one device alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lbsgd.models.curvature import DIAGONAL, FULL, KRONECKER, UNIT_WISE, CurvedLayer
from lbsgd.optim import inversion
from lbsgd.optim.kept import stacks_of
from lbsgd.optim.natural import scale_by_natural_gradient
from lbsgd.optim.preconditioner import Preconditioner
from lbsgd.optim.refresh import Sharing
from lbsgd.step.numbers import Numbers
from lbsgd.step.second_order import SecondOrder, refreshed_percent
from lbsgd.workers.collectives import ownership

KN, DAMPING, OF_NORMS = 24, 0.02, 16.0


def convolution(name, inputs, outputs):
    return CurvedLayer((name,), KRONECKER, ("kernel",), inputs, outputs, 4, (1, inputs, outputs))


LAYERS = {
    layer.name: layer
    for layer in (
        convolution("first", 7, 4),
        convolution("second", 7, 4),
        convolution("third", 7, 4),
        convolution("wide", 3, 8),
        CurvedLayer(("head",), KRONECKER, ("kernel", "bias"), 5, 5, 1, (4, 5)),
        CurvedLayer(("norm",), UNIT_WISE, ("scale", "offset"), 8, 4, 4),
        CurvedLayer(("whole",), FULL, ("scale", "offset"), 6, 3, 4),
    )
}
SHAPES = {
    "first": {"kernel": (1, 7, 4)},
    "second": {"kernel": (1, 7, 4)},
    "third": {"kernel": (1, 7, 4)},
    "wide": {"kernel": (1, 3, 8)},
    "head": {"kernel": (4, 5), "bias": (5,)},
    "norm": {"scale": (4,), "offset": (4,)},
    "whole": {"scale": (3,), "offset": (3,)},
    "other": {"kernel": (2, 2)},
}


# A stack of two and a norm; one whose factors are of one size.
KEPT = ("first", "second", "norm", "other")
KEPT_TOO = (*KEPT, "head")


@pytest.fixture
def all_together(monkeypatch):
    """Inverts the long factors of all stacks by the devices of a group together, in blocks."""
    monkeypatch.setattr(ownership, "ALONE", 0)
    monkeypatch.setattr(inversion, "BLOCK", 4)


def is_shape(x):
    return isinstance(x, tuple)


def drawn(devices, updates, seed=0):
    """Gradients and sums of statistics of each device, `[updates, D, ...]`."""
    random = np.random.default_rng(seed)
    gradients = jax.tree.map(
        lambda shape: random.normal(size=(updates, devices, *shape)), SHAPES, is_leaf=is_shape
    )

    def squares(d, rows):
        x = random.normal(size=(updates, devices, *rows, 2 * d, d))
        return np.einsum("...ni,...nj->...ij", x, x)

    sums = {}
    for name, layer in LAYERS.items():
        sums[name] = {key: squares(d, ()) for key, d in layer.factors.items()}
        if not layer.factors:
            f = squares(2, (layer.outputs,))
            parts = [f[..., 0, 0], f[..., 0, 1], f[..., 1, 1]]
            sums[name] = {"F": np.stack(parts, axis=-1)}
    return gradients, sums


def scales():
    return {name: dict.fromkeys(("A", "G", "F"), 0.01 * (i + 1)) for i, name in enumerate(LAYERS)}


def preconditioner(devices, threshold=0.0, names=SHAPES):
    ruled = {name: dict.fromkeys(SHAPES[name], name != "other") for name in names}
    layers = {name: layer for name, layer in LAYERS.items() if name in names}
    return Preconditioner(
        Sharing(layers, stacks_of(layers, devices), threshold, ("devices",)), ruled
    )


def shared_out(devices, threshold, gradients, sums):
    """Natural gradient, norm and state after each update, on so many devices."""
    made = preconditioner(devices, threshold, gradients.keys())
    mesh = Mesh(np.array(jax.devices()[:devices]), ("devices",))
    by_device, whole = PartitionSpec("devices"), PartitionSpec()
    # On the axis of this mesh.
    specs = jax.tree.map(
        lambda spec: by_device if spec else whole,
        made.specs(),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(by_device, by_device, specs, whole),
        out_specs=(whole, specs, whole),
        check_vma=False,
    )
    def exchange(gradient, sums, curvature, index):
        gradient, sums = jax.tree.map(lambda x: x[0], (gradient, sums))
        found = made(
            gradient,
            sums,
            curvature,
            scales=scales(),
            batch_size=KN,
            update_index=index,
            damping=DAMPING,
            norm_damping=OF_NORMS,
        )
        return found.natural, found.curvature, found.norm

    step, curvature = jax.jit(exchange), made.init(jnp.float64)
    curvature = curvature and jax.tree.map(jnp.asarray, made.from_stored(curvature))
    for t in range(jax.tree.leaves(gradients)[0].shape[0]):
        of_update = jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), (gradients, sums))
        natural, curvature, norm = step(*of_update, curvature, jnp.int32(t))
        yield jax.device_get((natural, norm)), curvature and made.stored(jax.device_get(curvature))


def alone(gradients, sums, t):
    """The natural gradient of the means over devices, and the norm of that of gradients."""
    mean = jax.tree.map(lambda x: jnp.asarray(x[t].mean(axis=0)), gradients)
    statistics: dict = {
        name: {key: jnp.asarray(scales()[name][key] * x[t].sum(axis=0)) for key, x in of.items()}
        for name, of in sums.items()
    }
    statistics[DIAGONAL] = {
        name: {key: KN * x**2 if name == "other" else None for key, x in of.items()}
        for name, of in mean.items()
    }
    transform = scale_by_natural_gradient({n: LAYERS[n] for n in gradients if n in LAYERS})
    told = {"statistics": statistics, "damping": DAMPING, "norm_damping": OF_NORMS}
    natural, _ = transform.update(mean, transform.init(mean), **told)
    return natural, np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(mean)))


@pytest.mark.parametrize(
    ("devices", "sampled"),
    [
        (3, True),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in ((1, True), (2, False), (4, False), (5, True), (8, False))
        ),
    ],
)
def test_devices_share_out_what_one_does_alone(x64, devices, sampled):
    gradients, sums = drawn(devices, 1)
    expected, of_mean = alone(gradients, sums, 0)
    if sampled:  # the diagonal is of the gradient for sampled labels
        others = drawn(devices, 1, seed=1)[0]["other"]
        none = {name: dict.fromkeys(of) for name, of in SHAPES.items()}
        sums = {**sums, DIAGONAL: {**none, "other": others}}
        mean, of_samples = (x["kernel"][0].mean(axis=0) for x in (gradients["other"], others))
        expected = {**expected, "other": {"kernel": mean / (KN * of_samples**2 + DAMPING)}}
    ((natural, norm), state), *_ = shared_out(devices, 0.0, gradients, sums)
    assert state is None
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), natural, expected
    )
    np.testing.assert_allclose(norm, of_mean, rtol=1e-12)


def test_devices_invert_together_what_one_does_alone(x64, all_together):
    """Shares one stack out to two groups of two devices, and the others to one group of four."""
    gradients, sums = (
        {name: tree[name] for name in KEPT_TOO if name in tree} for tree in drawn(4, 1)
    )
    made = preconditioner(4, 0.0, KEPT_TOO)
    owners = [stack.owner for stack in made.sharing.stacks.values()]
    assert sorted((o.groups, o.members, o.inverts_together) for o in owners) == [
        (1, 4, True),
        (2, 2, True),
    ]
    expected, _ = alone(gradients, sums, 0)
    ((natural, _), _), *_ = shared_out(4, 0.0, gradients, sums)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), natural, expected
    )


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 4, 6])
def test_what_is_kept_is_of_no_number_of_devices_that_invert_together(x64, all_together, devices):
    test_what_is_kept_is_of_no_number_of_devices(x64, devices, KEPT_TOO)


@pytest.mark.parametrize(
    ("devices", "names"),
    [(4, KEPT), *(pytest.param(d, KEPT_TOO, marks=pytest.mark.long) for d in (2, 3, 4, 6))],
)
def test_what_is_kept_is_of_no_number_of_devices(x64, devices, names):
    """Some statistics are not refreshed in the last of four updates, for they change little."""
    gradients, sums = (
        {name: tree[name] for name in names if name in tree} for tree in drawn(12, 4)
    )
    sums = jax.tree.map(lambda x: x[:1] + 0.01 * x, sums)
    # Of two layers that are a stack one doubles: its group refreshes while the other does not.
    twice = 2.0 ** np.arange(4)[:, None, None, None]
    sums["second"] = {key: x * twice for key, x in sums["second"].items()}

    def added_up(tree, count, share):
        """Gives each of fewer devices what several had."""
        return jax.tree.map(
            lambda x: share(x.reshape(len(x), count, -1, *x.shape[2:]), axis=2), tree
        )

    def on(count):
        return list(
            shared_out(
                count, 0.2, added_up(gradients, count, np.mean), added_up(sums, count, np.sum)
            )
        )

    found, expected = on(devices), on(1)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10), found, expected
    )
    state = found[-1][1]
    intervals = [kept.intervals for of in state.values() for kept in of.values()]
    assert max(x.last.max() for x in intervals) > 1
    assert len(set(state["7x4"]["A"].intervals.last.tolist())) == 2
    made = preconditioner(devices, 0.2, names)
    again = made.stored(made.from_stored(state))
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_how_many_statistics_are_refreshed_is_told(x64):
    made = preconditioner(1, 0.3, KEPT)
    curvature = jax.tree.map(jnp.asarray, made.from_stored(made.init(jnp.float64)))
    told = functools.partial(
        refreshed_percent, SecondOrder(None, made), Numbers(update_index=jnp.int32(3))
    )
    assert told(curvature) == 100
    # Of A and G of two layers and F of a norm, one.
    kept = curvature["7x4"]["A"]
    later = kept.intervals._replace(due_at=jnp.array([3, 4], jnp.int32))
    curvature["7x4"]["A"] = kept._replace(intervals=later)
    assert told(curvature) == 80
