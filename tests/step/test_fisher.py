"""Statistics of curvature against those of each example's own gradients, one after the other."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.models.curvature import KRONECKER, curved_layers, rule_of, ruled
from lbsgd.models.networks import Network, build_model
from lbsgd.models.normalization import BatchNorm
from lbsgd.step.fisher import Fisher, averaged, diagonal, probed, probing, with_lanes
from lbsgd.step.numbers import Numbers
from lbsgd.step.reduction import over_devices, over_lanes, sum_over_steps
from lbsgd.step.worker import WorkerResult, gradient_of
from lbsgd.workers.placement import place

CLASSES = 5


class Odd(nn.Module):
    """Convolutions of all kinds, and dense layers: with and without bias, and called twice."""

    @nn.compact
    def __call__(self, x, *, train):
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        x = nn.Conv(4, (3, 2), (2, 1), padding="SAME", **double)(x)
        x = BatchNorm(**double)(jnp.tanh(x), train=train)
        x = nn.Conv(6, (2, 3), padding="VALID", kernel_dilation=(1, 2), use_bias=False, **double)(x)
        twice = nn.Dense(6, name="twice", **double)
        x = jnp.tanh(twice(jnp.tanh(twice(x))))
        x = nn.Conv(6, (3, 3), feature_group_count=2, name="in_groups", **double)(x)
        x = nn.Dense(7, use_bias=False, **double)(x)  # at each position
        return nn.Dense(CLASSES, **double)(jnp.mean(jnp.tanh(x), axis=(1, 2)))


def resnet(name, **options):
    kind = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return build_model(name, num_classes=CLASSES, zero_init_residual=False, **kind, **options)


NETWORKS = {
    "odd": lambda: (Odd(), (7, 8, 3)),
    "cifar": lambda: (resnet("cifar_resnet8", width=0.25), (8, 8, 3)),
    "basic, 7x7 stride 2": lambda: (resnet("resnet18", width=0.0625), (33, 32, 3)),
    "no norm": lambda: (resnet("cifar_resnet8", width=0.25, normalization="none"), (8, 8, 1)),
    "bottleneck": lambda: (resnet("resnet50", width=0.0625), (32, 32, 3)),
    "deep stem, pooled": lambda: (resnet("resnet18d", width=0.0625), (33, 32, 3)),
}
SHORT = ("odd", "cifar")
CASES = [pytest.param(n, marks=() if n in SHORT else pytest.mark.long) for n in NETWORKS]


def drawn(name, examples):
    """The module, its variables, all of them drawn, and images and labels."""
    module, shape = NETWORKS[name]()
    keys = iter(jax.random.split(jax.random.key(len(name)), 500))

    def normal(shape, scale=1.0):
        return scale * jax.random.normal(next(keys), shape, jnp.float64)

    images = normal((examples, *shape))
    init = jax.jit(functools.partial(module.init, train=False))
    variables = nn.meta.unbox(init(next(keys), images[:1]))
    params = jax.tree.map(lambda p: p + normal(p.shape, 0.1), variables["params"])
    stats = variables.get("batch_stats", {})
    stats = jax.tree.map(lambda p: jnp.abs(p + normal(p.shape, 0.1)), stats)
    labels = jax.random.randint(next(keys), (examples,), 0, CLASSES)
    return module, params, stats, images, labels


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def network_of(module, n, shape, *, train):
    """As `build_network` makes it; with train=False the norms go by their running averages."""

    def apply(params, stats, images, key):
        variables = {"params": params, "batch_stats": stats}
        out, left = module.apply(variables, images, train=train, mutable=["batch_stats"])
        return out, left.get("batch_stats", {})

    images = jax.ShapeDtypeStruct((n, *shape), jnp.float64)
    rest = dict.fromkeys(Network._fields)
    return Network(**{**rest, "train": apply, "images": images})


def fisher_of(network, params, stats, examples):
    layers = curved_layers(network, params, stats)
    return Fisher(network.train, layers, ruled(layers, params), examples, "highest")


def worker_loss(params, stats, numbers, batch, index, *, network):
    out, left = network(params, stats, batch["image"], jax.random.key(0))
    return WorkerResult(jnp.mean(cross_entropy(out, batch["label"])), {}, left)


def test_layers_without_a_rule_are_left_out():
    with jax.enable_x64():
        module, params, stats, images, _ = drawn("odd", 2)
        network = network_of(module, 2, images.shape[1:], train=False)
        layers = curved_layers(network, params, stats)
    assert set(layers) == {"Conv_0", "BatchNorm_0", "Conv_1", "Dense_0", "Dense_1"}
    told = ruled(layers, params)
    assert not any(jax.tree.leaves((told["twice"], told["in_groups"])))
    assert all(jax.tree.leaves({name: told[name] for name in layers}))


def statistics(fisher, params, stats, images, labels, *, devices=1, steps=1, n=None):
    """The gradient and the statistics of a minibatch, by the parts that the step is made of."""
    n = n or len(images)
    placement = place(len(images), n, devices=devices, accumulation_steps=steps)
    rows = placement.rows_of_slot()
    batch = {"image": images[rows], "label": labels[rows]}
    worker = probing(functools.partial(worker_loss, network=fisher.network), fisher)

    def on_device(params, stats, numbers, batch):
        given, trained = probed(params, None, fisher)

        def of_step(step_and_rows):
            step, rows = step_and_rows
            rows = with_lanes(rows, step, placement)

            def loss(given):
                bound = functools.partial(worker, given, stats, numbers)
                result = over_lanes(bound, rows, step, placement, {})
                return result.loss, result

            return gradient_of(loss, given, trained)[0]

        counted = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
        total = sum_over_steps(of_step, (counted, batch), "cpu")
        return jax.lax.pmean(total, ("group", "member"))

    step = jax.jit(over_devices(on_device, placement, replicated=3))
    given = jax.device_put((params, stats, Numbers()), placement.replicated)
    gradient, sums, _ = step(*given, jax.device_put(batch, placement.batch_sharding))
    found = averaged(sums, fisher, placement)
    return gradient, {**found, "diagonal": diagonal(gradient, fisher, placement)}


def by_hand(network, params, stats, layers, images, labels):
    """Inputs of each layer, and gradients of each example's loss by its outputs.

    By perturbing the outputs of all layers, and not on the way back.
    """
    inputs = {}

    def run(shifts, images, labels):
        def shift(call, args, kwargs, context):
            y = call(*args, **kwargs)
            name = "/".join(context.module.path)
            if context.method_name != "__call__" or name not in layers:
                return y
            rule = rule_of(context.module, args[0], y, kwargs)
            inputs[name] = rule.inputs(*rule.given)
            return y + shifts.get(name, 0.0)

        with nn.intercept_methods(shift):
            out, _ = network.train(params, stats, images, None)
        return jnp.sum(cross_entropy(out, labels)), inputs

    shapes = {}

    def note(call, args, kwargs, context):
        y = call(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name == "__call__" and name in layers:
            shapes[name] = y
        return y

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: network.train(params, stats, images, None))
    zeros = {name: jnp.zeros(y.shape, y.dtype) for name, y in shapes.items()}
    return jax.jit(jax.grad(run, has_aux=True))(zeros, images, labels)


def get(tree, layer):
    for part in layer.path:
        tree = tree[part]
    return tree


def relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


@pytest.mark.parametrize("name", CASES)
def test_statistics_are_those_of_each_examples_gradient(name):
    examples = 6
    with jax.enable_x64():
        module, params, stats, images, labels = drawn(name, examples)
        network = network_of(module, examples, images.shape[1:], train=False)
        fisher = fisher_of(network, params, stats, examples)
        _, found = statistics(fisher, params, stats, images, labels)

        def of_one(image, label):
            def loss(params):
                out, _ = network.train(params, stats, image[None], None)
                return cross_entropy(out, label[None])[0]

            return jax.grad(loss)(params)

        each = jax.jit(jax.vmap(of_one))(images, labels)
        gradients, inputs = by_hand(network, params, stats, fisher.layers, images, labels)
        for layer in fisher.layers.values():
            own = get(each, layer)
            if layer.kind != KRONECKER:
                s, b = own["scale"], own["offset"]
                expected = [jnp.mean(p, axis=0) for p in (s * s, s * b, b * b)]
                assert relative(found[layer.name]["F"], jnp.stack(expected, axis=-1)) < 1e-12
                continue
            g = gradients[layer.name].reshape(examples, layer.positions, -1)
            expected = jnp.einsum("nsi,nsj->ij", g, g) / (examples * layer.positions)
            assert relative(found[layer.name]["G"], expected) < 1e-12
            a = inputs[layer.name]
            expected = jnp.einsum("nsi,nsj->ij", a, a) / examples
            assert relative(found[layer.name]["A"], expected) < 1e-12
            # And these inputs are the right ones: with g they make the gradient of each example.
            matrix = [own["kernel"].reshape(examples, -1, layer.outputs)]
            matrix += [own[name][:, None] for name in layer.parameters[1:]]
            whole = jnp.concatenate(matrix, axis=1)
            assert relative(jnp.einsum("nsi,nsj->nij", a, g), whole) < 1e-12


@pytest.mark.parametrize(
    ("devices", "steps"), [(1, 1), (1, 4), (3, 1), (8, 1), (2, 2), (4, 2), (5, 1)]
)
def test_statistics_do_not_depend_on_where_workers_lie(devices, steps):
    """7 workers of 4, of whose first 2 examples they are; idle slots and batch norm among them."""
    with jax.enable_x64():
        module, params, stats, images, labels = drawn("odd", 28)
        network = network_of(module, 4, images.shape[1:], train=True)
        fisher = fisher_of(network, params, stats, 2)
        alone = [
            statistics(fisher, params, stats, images[i : i + 4], labels[i : i + 4])
            for i in range(0, 28, 4)
        ]
        expected = jax.tree.map(lambda *x: sum(x) / 7, *alone)
        # What has no rule has kn g^2 of the mean gradient.
        expected[1]["diagonal"] = jax.tree.map(
            lambda told, g: None if told else 28 * g**2, fisher.ruled, expected[0]
        )
        found = statistics(fisher, params, stats, images, labels, devices=devices, steps=steps, n=4)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-13)
        jax.tree.map(close, found, expected)
