"""The estimate of a step's memory: on programs whose memory is known, and on compiled steps."""

import jax
import jax.numpy as jnp
import pytest

from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.fitting import MINIBATCHES, batch_bytes, estimated_memory
from lbsgd.step.memory import Peak, bytes_of, peak
from lbsgd.workers.fit import memory_of

N = 64
MATRIX = 4 * N * N
SHAPE = jax.ShapeDtypeStruct((N, N), jnp.float32)


def peak_of(function, *shapes, parameters=()):
    return peak(jax.make_jaxpr(function)(*shapes), parameters)


def test_what_a_program_is_given_does_not_count():
    assert peak_of(lambda x, y: x + y, SHAPE, SHAPE) == Peak(0, 0)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_chain_of_products_holds_two_at_a_time(length):
    """What a product reads and what it makes; the first reads what is given."""

    def chain(x, w):
        for _ in range(length):
            x = x @ w
        return x

    assert peak_of(chain, SHAPE, SHAPE) == Peak(0, min(length, 2) * MATRIX)


def test_elementwise_operations_are_part_of_the_kernels_around_them():
    """The rectified sum is stored for the product that reads it, and once."""

    def rectified(x, w):
        return jax.nn.relu(jnp.tanh(x) * 2 + 1) @ w

    assert peak_of(rectified, SHAPE, SHAPE) == Peak(0, 2 * MATRIX)


def test_what_is_used_again_later_stays():
    """y is needed at the end, by way of its square root."""

    def skips(x, w):
        y = x @ w
        root = jnp.sqrt(y)
        for _ in range(3):
            x = x @ w
        return x + root

    assert peak_of(skips, SHAPE, SHAPE) == Peak(0, 3 * MATRIX)


def test_gradients_are_told_from_activations_by_their_shape():
    x = jax.ShapeDtypeStruct((7, N), jnp.float32)

    def loss(w, x):
        return jnp.sum((x @ w) ** 2)

    found = peak_of(jax.grad(loss), SHAPE, x, parameters=[(N, N)])
    assert found == Peak(MATRIX, 4 * 7 * N)  # and what came back to the product


def test_calls_are_looked_into_and_a_loop_counts_once():
    def twice(x, w):
        body = jax.jit(lambda x: (x @ w) @ w)
        return jax.lax.scan(lambda c, _: (body(c), None), x, None, length=9)[0]

    one_pass = peak_of(lambda x, w: jax.jit(lambda x: (x @ w) @ w)(x), SHAPE, SHAPE)
    assert one_pass == Peak(0, 2 * MATRIX)
    assert peak_of(twice, SHAPE, SHAPE) == Peak(0, 2 * MATRIX + MATRIX)  # and what it returns


def test_bytes_of_a_tree():
    assert bytes_of({"a": SHAPE, "b": jax.ShapeDtypeStruct((3,), jnp.int8)}) == MATRIX + 3


def run_of(name: str, size: int, n: int, lanes: int, **keys: object):
    config = default_config()
    config.update({"batch_size": n * lanes, "worker_batch_size": n, "devices": 1})
    config.update({"total_steps": 1, "learning_rate": {"warmup": "none"}})
    config.model.update({"name": name})
    config.data.update({"source": "synthetic", "image_size": size, "synthetic_classes": 10})
    config.data.update({"synthetic_examples": 512, "synthetic_validation_examples": 8})
    config.update_from_flattened_dict(keys)
    return build(resolve(config))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "n", "lanes", "keys"),
    [
        ("cifar_resnet8", 32, 32, 2, {}),
        pytest.param("cifar_resnet20", 32, 32, 4, {}, marks=pytest.mark.long),
        pytest.param(
            "cifar_resnet20", 32, 32, 4, {"accumulation_steps": 2}, marks=pytest.mark.long
        ),
        pytest.param(
            "cifar_resnet8", 32, 64, 2, {"model.normalization": "group"}, marks=pytest.mark.long
        ),
        pytest.param("resnet18", 64, 16, 2, {}, marks=pytest.mark.long),
        pytest.param("resnet50", 64, 8, 2, {}, marks=pytest.mark.long),
    ],
)
def test_an_estimate_is_near_what_the_compiled_step_needs(name, size, n, lanes, keys):
    """Within a factor of two, either way: the compiler decides what it fuses and what it reuses."""
    run = run_of(name, size, n, lanes, **keys)
    placement = run.plan.placement
    batch = batch_bytes(run.plan, placement)
    compiled = memory_of(run.program.compile_train_step(), batch)
    estimate = estimated_memory(run.plan)(placement) - MINIBATCHES * batch
    print(f"estimate / compiled = {estimate / compiled:.2f}")
    assert compiled / 2 <= estimate <= 2 * compiled
