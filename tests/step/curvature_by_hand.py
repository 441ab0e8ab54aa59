"""Statistics of curvature as the step takes them, and by each example's own gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lbsgd.models.curvature import KRONECKER, curved_layers, rule_of
from lbsgd.models.networks import Network
from lbsgd.step.fisher import Fisher, probed, probing, scales, with_lanes
from lbsgd.step.numbers import Numbers
from lbsgd.step.reduction import over_devices, over_lanes, sum_over_steps
from lbsgd.step.worker import gradient_of, worker_loss
from lbsgd.tasks.classification import classification
from lbsgd.workers.placement import DEVICE_AXES, place


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


def fisher_of(network, params, stats, examples, *, sampled_loss=None):
    layers = curved_layers(network, params, stats)
    return Fisher(network.train, layers, examples, "highest", sampled_loss)


# Of no matter how many classes: it looks at no more than whether there are as many outputs.
SOFTMAX_LOSS = classification(2).loss


def step_of(fisher, placement, *, loss=SOFTMAX_LOSS):
    """(params, stats, numbers, batch) -> gradient, statistics, loss, by the parts of the step."""
    worker = functools.partial(
        worker_loss, network=fisher.network, preprocess=lambda images: images, loss=loss
    )
    worker = probing(worker, fisher)

    def on_device(params, stats, numbers, batch):
        given, trained = probed(params, None, fisher)

        def of_step(step_and_rows):
            step, rows = step_and_rows
            rows = with_lanes(rows, step, placement)

            def loss(given):
                bound = functools.partial(worker, given, stats, numbers)
                result = over_lanes(bound, rows, step, placement, {})
                return result.loss, result

            gradient, result = gradient_of(loss, given, trained)
            return gradient, result.loss

        counted = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
        total = sum_over_steps(of_step, (counted, batch), "cpu")
        (gradient, sums, _), loss = total
        gradient, loss = jax.lax.pmean((gradient, loss), DEVICE_AXES)
        # Of what has no rule the gradient for sampled labels, averaged as that of the loss is.
        unruled = jax.lax.pmean(sums.pop("diagonal", {}), DEVICE_AXES)
        sums = jax.lax.psum(sums, DEVICE_AXES)
        found = jax.tree.map(jnp.multiply, sums, scales(fisher, placement))
        return gradient, {**found, "unruled": unruled}, loss

    return jax.jit(over_devices(on_device, placement, replicated=3))


def arguments(placement, params, stats, images, labels, *, update=0):
    rows = placement.rows_of_slot()
    batch = {"image": images[rows], "label": labels[rows]}
    numbers = Numbers(seed=3, update_index=jnp.int32(update))
    given = jax.device_put((params, stats, numbers), placement.replicated)
    return *given, jax.device_put(batch, placement.batch_sharding)


def statistics(fisher, params, stats, images, labels, *, devices=1, steps=1, n=None, update=0):
    """The gradient, the statistics, and the loss of a minibatch."""
    n = n or len(images)
    placement = place(len(images), n, devices=devices, accumulation_steps=steps)
    given = arguments(placement, params, stats, images, labels, update=update)
    return step_of(fisher, placement)(*given)


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
            out, _ = network.train(params, stats, images, jax.random.key(0))
        return jnp.sum(cross_entropy(out, labels)), inputs

    shapes = {}

    def note(call, args, kwargs, context):
        y = call(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name == "__call__" and name in layers:
            shapes[name] = y
        return y

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: network.train(params, stats, images, jax.random.key(0)))
    zeros = {name: jnp.zeros(y.shape, y.dtype) for name, y in shapes.items()}
    return jax.jit(jax.grad(run, has_aux=True))(zeros, images, labels)


def each_gradient(network, params, stats, images, labels):
    """The gradient of each example's own loss, by the parameters."""

    def of_one(image, label):
        def loss(params):
            out, _ = network.train(params, stats, image[None], jax.random.key(0))
            return cross_entropy(out, label[None])[0]

        return jax.grad(loss)(params)

    return jax.jit(jax.vmap(of_one))(images, labels)


def expected_statistics(network, params, stats, layers, images, labels, weights=None):
    """A, G and F as averages over examples, of which each has a weight; and what they are of.

    Returns:
      the statistics by layer, the gradients of each example, the inputs of each layer, and the
      gradients of its outputs.
    """
    n = len(images)
    weights = jnp.ones(n, images.dtype) / n if weights is None else weights
    each = each_gradient(network, params, stats, images, labels)
    gradients, inputs = by_hand(network, params, stats, layers, images, labels)
    expected, outputs = {}, {}
    for name, layer in layers.items():
        if layer.kind == KRONECKER:
            outputs[name] = g = gradients[name].reshape(n, layer.positions, -1)
            of_g = jnp.einsum("n,nsi,nsj->ij", weights, g, g) / layer.positions
            of_a = jnp.einsum("n,nsi,nsj->ij", weights, inputs[name], inputs[name])
            expected[name] = {"A": of_a, "G": of_g}
            continue
        s, b = (get(each, layer)[key] for key in ("scale", "offset"))
        expected[name] = {"F": jnp.einsum("n,kni->ik", weights, jnp.stack([s * s, s * b, b * b]))}
    return expected, each, inputs, outputs


def get(tree, layer):
    for part in layer.path:
        tree = tree[part]
    return tree


def relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
