"""Runs of one process share what is compiled, and nothing else."""

import concurrent.futures
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import SingleDeviceSharding
from tiny_run import tiny_config

from lbsgd import train
from lbsgd.models.normalization import BatchNorm
from lbsgd.run import sharing
from lbsgd.run.build import build
from lbsgd.run.sharing import Executables, SharedFunction

# Whether a number is 0 belongs to the program; what it is otherwise does not.
OTHER = {
    "seed": 7,
    "learning_rate.reference_learning_rate": 0.3,
    "optimizer.weight_decay": 3e-4,
    "ema.decay": 0.9,
}
SHORT = {
    "total_steps": 4,
    "model.name": "test_sharing:Normalized",
    "model.width": 1.0,
    "ema.decay": 0.99,
    "batch_norm.precise_examples": 64,
    "checkpoint.every_steps": 2,
}


class Normalized(nn.Module):
    """Compiled in no time."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes)(BatchNorm()(x, train=train).mean((1, 2)))


@pytest.fixture
def compiled(monkeypatch):
    """The programs that are compiled, by name; none was before."""
    names = []
    compile_lowered = jax.stages.Lowered.compile

    def compiled(lowered, *args, **keys):
        names.append(lowered.as_text().split("@jit_")[1].split()[0].lstrip("_"))
        return compile_lowered(lowered, *args, **keys)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    monkeypatch.setattr(sharing, "SHARED", Executables())
    monkeypatch.setattr("lbsgd.run.program.SHARED", sharing.SHARED)
    return names


@pytest.mark.long
def test_another_seed_and_other_numbers_compile_nothing(compiled, tmp_path):
    assert train.run(tiny_config(**SHORT), tmp_path / "first").complete
    assert sorted(compiled) == ["eval_step", "initial_state", "moments_step", "train_step"]
    assert train.run(tiny_config(**SHORT | OTHER), tmp_path / "second").complete
    assert len(compiled) == 4
    # Another form is another program.
    assert build(tiny_config(**SHORT | {"ema.decay": 0.0})).program.compile_train_step()
    assert len(compiled) == 5


def test_nothing_of_a_run_is_kept():
    config = tiny_config(**SHORT)
    run = build(config)
    run.program.compile_train_step()
    run.program.start()
    plan = weakref.ref(run.plan)
    del run
    gc.collect()
    assert plan() is None


@pytest.mark.parametrize("seed", [0, 2**31 + 5, 2**32 - 1])
def test_a_seed_that_is_an_argument_draws_the_same_weights(seed):
    """Bitwise, as when it is a constant of the program."""
    run = build(tiny_config(**SHORT | {"seed": seed}))
    expected = jax.jit(run.plan.initial_state)()
    jax.tree.map(np.testing.assert_array_equal, run.program.start(), expected)


def shared(function, device=0):
    return SharedFunction(function, SingleDeviceSharding(jax.devices()[device]))


def constant(value):
    table = np.full(1000, value, np.float32)
    return lambda x: x + jnp.asarray(table)


def calls_back(value):
    def read(x):
        return jax.pure_callback(lambda y: np.asarray(y + value), jax.typeof(x), x)

    return read


ONES = np.ones(1000, np.float32)


@pytest.mark.parametrize(
    ("one", "other", "args"),
    [
        (constant(1), constant(2), (ONES,)),
        (calls_back(np.float32(1)), calls_back(np.float32(2)), (ONES,)),
        (lambda a, b: a, lambda a, b: b, (ONES, 2 * ONES)),
        (lambda a, b: a + 0 * b, lambda a, b: b + 0 * a, (ONES, 2 * ONES)),
        (lambda a: {"a": a}, lambda a: {"b": a}, (ONES,)),
    ],
    ids=["constants", "callbacks", "unused arguments", "order of arguments", "names of outputs"],
)
def test_programs_that_differ_are_not_mixed_up(one, other, args):
    for function in (one, other, one):
        jax.tree.map(np.testing.assert_array_equal, shared(function)(*args), function(*args))


def test_what_is_compiled_for_a_device_runs_there():
    for device in (0, 1, 0):
        out = shared(lambda x: 2 * x, device)(jax.device_put(ONES, jax.devices()[device]))
        assert out.devices() == {jax.devices()[device]}


def test_the_newest_are_kept_and_the_others_freed():
    kept = Executables(2)
    out = SingleDeviceSharding(jax.devices()[0])

    def compile_for(size):
        return kept.compile(jax.jit(jnp.sin, out_shardings=out).lower(np.ones(size)), out)

    first = compile_for(1)
    assert compile_for(1) is first
    second = weakref.ref(compile_for(2))
    assert compile_for(1) is first  # and is the newest now
    compile_for(3)
    gc.collect()
    assert second() is None
    assert compile_for(1) is first


def test_programs_for_other_options_of_the_compiler_are_not_mixed_up():
    kept, out = Executables(), SingleDeviceSharding(jax.devices()[0])
    lowered = jax.jit(jnp.sin, out_shardings=out).lower(ONES)
    options = [None, {"xla_cpu_enable_fast_math": True}, {"xla_cpu_enable_fast_math": False}]
    found = [kept.compile(lowered, out, each) for each in options]
    assert len({id(one) for one in found}) == len(options)
    assert [kept.compile(lowered, out, each) for each in options] == found


def test_threads_share_too():
    function = shared(lambda x: 3 * x)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for out in pool.map(lambda i: function(np.full(1000 + i % 2, i)), range(32)):
            assert out[0] % 3 == 0
