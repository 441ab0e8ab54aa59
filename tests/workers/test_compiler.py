"""Options of XLA's compiler: for which machine, of which size, and never in the way of a run."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from tiny_run import tiny_config

from lbsgd.experiments.joint import JointProgram
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.program import Program
from lbsgd.run.sharing import Executables
from lbsgd.workers.compiler import compile_with, compiler_options
from lbsgd.workers.topology import Topology

MIB = 2**20
TPU, GPU = "xla_jf_crs_combiner_threshold_in_bytes", "xla_gpu_all_reduce_combine_threshold_bytes"
ASYNC = {
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
}
HIDING = {"xla_gpu_enable_latency_hiding_scheduler": True}
RING, ROUNDED = {"algorithm": "ring"}, {"dtype": "bfloat16"}


def allreduce(**keys):
    config = default_config()
    config.allreduce.update(keys)
    return resolve(config).allreduce


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("platform", "devices", "keys", "expected"),
    [
        ("tpu", 4, {}, {TPU: 2 * MIB, **ASYNC}),
        ("tpu", 256, {"bucket_mib": 0.5}, {TPU: MIB // 2, **ASYNC}),
        ("tpu", 4, RING, {TPU: 32 * MIB, **ASYNC}),
        ("tpu", 4, ROUNDED, {TPU: 32 * MIB, **ASYNC}),
        ("tpu", 1, {}, {}),
        ("gpu", 8, {}, {GPU: 32 * MIB, **HIDING}),
        ("gpu", 2, {"bucket_mib": 4.0}, {GPU: 4 * MIB, **HIDING}),
        ("gpu", 1, {"bucket_mib": 4.0}, {}),
        ("cpu", 8, {}, {}),
        ("another", 8, {}, {}),
    ],
)
def test_options_are_those_of_the_machine(platform, devices, keys, expected):
    found = compiler_options(allreduce(**keys), Topology(devices, platform=platform))
    assert found == expected


@pytest.mark.parametrize(
    ("variable", "flags", "gone"),
    [
        ("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false --xla_other=1", HIDING),
        ("XLA_FLAGS", "--noxla_gpu_enable_latency_hiding_scheduler", HIDING),
        ("XLA_FLAGS", "--xla_dump_to=a--xla_gpu_enable_latency_hiding_scheduler", {}),
        ("LIBTPU_INIT_ARGS", f"--{GPU}=5", {GPU: 0}),
    ],
)
def test_what_the_environment_says_is_left_to_it(variable, flags, gone, monkeypatch):
    monkeypatch.setenv(variable, flags)
    found = compiler_options(allreduce(), Topology(8, platform="gpu"))
    assert found.keys() == {GPU, *HIDING} - gone.keys()


@pytest.fixture
def lowered():
    out = SingleDeviceSharding(jax.devices()[0])
    return jax.jit(lambda x: 2 * x, out_shardings=out).lower(np.ones(3, np.float32))


# The second is known, but not for what it is given; the third's name begins with the first's.
REFUSED = {
    "xla_of_another_version": 1,
    GPU: "many",
    "xla_of_another_version_too": True,
}


def test_what_the_compiler_does_not_take_is_left_out(lowered):
    said = []
    options = {**REFUSED, "xla_cpu_enable_fast_math": False}
    found = compile_with(lowered, options, said.append)(np.ones(3, np.float32))
    np.testing.assert_array_equal(found, np.full(3, 2, np.float32))
    told = [f"this compiler does not take {k}={v}; left out" for k, v in REFUSED.items()]
    assert sorted(said) == sorted(told)
    assert options.keys() > REFUSED.keys()


def test_the_options_that_it_takes_are_used(lowered, monkeypatch):
    given = []
    compile_lowered = jax.stages.Lowered.compile

    def compiled(lowered, options):
        given.append(dict(options))
        return compile_lowered(lowered, options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    compile_with(lowered, {"xla_of_another_version": 1, **HIDING}, lambda line: None)
    assert given == [{"xla_of_another_version": 1, **HIDING}, HIDING]


def test_another_error_of_the_compiler_is_an_error(lowered, monkeypatch):
    def compiled(lowered, options):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {GPU}")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compile_with(lowered, {GPU: 1}, pytest.fail)


def test_the_line_is_printed_once(lowered, capsys):
    kept, out = Executables(), SingleDeviceSharding(jax.devices()[0])
    found = [kept.compile(lowered, (out, i), {"xla_of_another_version": 1}) for i in range(2)]
    assert found[0] is not found[1]
    assert capsys.readouterr().err == (
        "lbsgd: this compiler does not take xla_of_another_version=1; left out\n"
    )


@pytest.mark.parametrize("count", [1, 2])
def test_updates_are_compiled_with_them(count, lowered, monkeypatch):
    """Compiles for one run, and for several at once."""
    given, double = [], lowered.compile()

    def compiled(lowered, options=None):
        given.append(options)
        return double

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    for module in ("run.program", "experiments.joint"):
        monkeypatch.setattr(f"lbsgd.{module}.SHARED", Executables())
    plan = build(tiny_config()).plan
    program = Program(dataclasses.replace(plan, topology=Topology(2, platform="gpu")))
    (JointProgram(program, 2) if count == 2 else program).compile_train_step()
    assert given == [{GPU: 32 * MIB, **HIDING}]
