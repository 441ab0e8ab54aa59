"""A run of natural gradients resumes within the intervals of its statistics, here and elsewhere."""

import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from compiled_text import collectives
from flax import linen as nn
from hanging import HANG_SECONDS

from lbsgd import train
from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.models.normalization import BatchNorm
from lbsgd.optim.explain import explain_sharing
from lbsgd.run.build import build, plan_run
from lbsgd.run.calls import programs_between
from lbsgd.run.config import resolve
from lbsgd.run.fitting import curvature_bytes
from lbsgd.run.record.metrics import read_metrics
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import decimal
from lbsgd.workers.collectives.ownership import sent

ROOT = pathlib.Path(__file__).parents[2]
UPDATES = 9

CONFIG = f"""
from lbsgd.run.config import default_config

def get_config(arg=""):
    config = default_config()
    config.update({{
        "dtype": "float64",
        "batch_size": 48,
        "worker_batch_size": 8,
        "total_steps": {UPDATES},
        "model": {{"name": "cifar_resnet8", "width": 0.125}},
        "learning_rate": {{
            "reference_learning_rate": 0.01, "scaling": "none", "warmup": "none"}},
        "optimizer": {{
            "name": "spngd", "nesterov": False, "damping": 1e-2, "fisher_share": 0.5,
            "stale_threshold": 0.4, "weight_rescaling": "larger"}},
        "evaluation": {{"every_steps": 5}},
        "checkpoint": {{"every_steps": 5, "keep_best": True}},
        "log": {{"every_steps": 1, "sinks": ()}},
    }})
    return config
"""


def config_at(devices: int, **keys: object):
    namespace: dict = {}
    exec(CONFIG, namespace)
    config = namespace["get_config"]()
    config.devices = devices
    config.update_from_flattened_dict(keys)
    return resolve(config)


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    plan, program, _ = build(config_at(1))
    checkpoints = Checkpoints(workdir / "checkpoints", 9, plan.identity(), say=pytest.fail)
    update, state = checkpoints.restore(program.abstract_state())
    checkpoints.close()
    assert update == UPDATES
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def losses(workdir: pathlib.Path) -> list[float]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return [line["train_loss"] for line in lines if "train_loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with jax.enable_x64():
        workdir = tmp_path_factory.mktemp("uninterrupted")
        assert train.run(config_at(2), workdir).complete
        yield workdir


@pytest.mark.long
def test_it_resumes_bitwise_and_on_other_devices(x64, uninterrupted, tmp_path):
    whole = final_state(uninterrupted)
    due_at = np.concatenate([x for name, x in whole.items() if name.endswith("intervals.due_at")])
    # Within intervals, and of several lengths: else it would show nothing.
    assert len(set(due_at)) > 1
    assert max(due_at) > UPDATES
    train.run(config_at(2), tmp_path / "here", should_stop=lambda done: done == 6)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert train.run(config_at(2), tmp_path / "here").complete
    assert losses(tmp_path / "here") == losses(uninterrupted)
    for name, x in final_state(tmp_path / "here").items():
        np.testing.assert_array_equal(x, whole[name], err_msg=name)
    assert train.run(config_at(3), tmp_path / "there").complete
    for name, x in final_state(tmp_path / "there").items():
        np.testing.assert_allclose(x, whole[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("stop", range(1, UPDATES))
def test_it_resumes_bitwise_after_any_update(x64, uninterrupted, tmp_path, stop):
    train.run(config_at(2), tmp_path, should_stop=lambda done: done == stop)
    assert train.run(config_at(2), tmp_path).complete
    whole = final_state(uninterrupted)
    for name, x in final_state(tmp_path).items():
        np.testing.assert_array_equal(x, whole[name], err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_bring_their_parts_of_a_checkpoint(x64, uninterrupted, tmp_path, processes):
    """Begun by one process, and gone on with by several, of which one saves."""
    (tmp_path / "natural.py").write_text(CONFIG)
    workdir = tmp_path / "run"
    train.run(config_at(1), workdir, should_stop=lambda done: done == 4)
    command = [
        sys.executable, "-m", "lbsgd.main", "launch", f"--num_processes={processes}",
        "--devices_per_process=1", "--platform=cpu", "--max_restarts=0", "--",
        f"--config={tmp_path / 'natural.py'}", f"--workdir={workdir}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    assert "not by the clock" in done.stdout + done.stderr
    np.testing.assert_allclose(losses(workdir), losses(uninterrupted), rtol=1e-9)
    whole = final_state(uninterrupted)
    for name, x in final_state(workdir).items():
        np.testing.assert_allclose(x, whole[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"optimizer.fisher_share": 0.3}, "take 0.25"),
        (
            {"optimizer.rate_multipliers": {"kernel": 10.0}},
            "would move kernels from the norm",
        ),
        (
            {"optimizer.momentum_schedule": "with_rate", "learning_rate.warmup": "gradual"},
            "its highest in the first update",
        ),
        ({"allreduce.algorithm": "ring"}, "has an exchange of its own"),
        ({"allreduce.dtype": "bfloat16"}, "optimizer.statistics_dtype"),
    ],
)
def test_what_does_not_go_with_natural_gradients_is_refused_in_a_line(keys, words):
    with pytest.raises(ConfigError, match=words):
        plan_run(config_at(1, **keys))


class Small(nn.Module):
    """Layers that are a stack, and others; compiled in a few seconds."""

    num_classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, x, *, train):
        for _ in range(3):
            x = nn.relu(BatchNorm()(nn.Conv(1, (3, 3), use_bias=False)(x), train=train))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def numbers_owned(owners) -> tuple[list[int], list[int]]:
    """Counts what a device has of each stack's gradients, and of its factors, one after another."""
    gradients = [o.per_group * -(-o.long // o.members) * o.columns for o in owners]
    packed = [(o, 2 * -(-d // 2)) for o in owners for d in (o.long, o.short)]
    return gradients, [o.per_group * -(-(d + 1) // o.members) * (d // 2) for o, d in packed]


@pytest.mark.parametrize(
    "model", ["test_second_order:Small", pytest.param("cifar_resnet8", marks=pytest.mark.long)]
)
def test_what_is_exchanged_crosses_once_and_outside_of_the_accumulation(model):
    """Gradients and statistics by reduce-scatter, updates by all-gather, of the bytes it says."""
    devices, number = 4, 4
    run = build(
        config_at(
            devices,
            dtype="float32",
            accumulation_steps=2,
            batch_size=64,
            **{"optimizer.stale_threshold": 0.0, "model.name": model},
        )
    )
    state = run.plan.state_shapes
    sharing = run.plan.second_order.precondition.sharing
    compiled = run.program.compile_train_step()
    found = {
        kind: collectives(compiled, kind) for kind in ("reduce-scatter", "all-gather", "all-reduce")
    }
    assert {computation for each in found.values() for computation, _ in each} == {"ENTRY"}
    total = {kind: sum(size for _, size in each) for kind, each in found.items()}
    owners = [stack.owner for stack in sharing.stacks.values()]
    gradients, statistics = numbers_owned(owners)
    assert total["reduce-scatter"] == number * sum(gradients + statistics)
    # Those of the factors, and for their products those of gradients.
    members = [o.members for o in owners]
    pieces = [x + a + g for x, a, g in zip(gradients, statistics[::2], statistics[1::2])]
    within = sum(m * piece for m, piece in zip(members, pieces) if m > 1)
    updates = devices * sum(gradients)
    # The traces of both factors, and a square.
    told = devices * (2 * sum(o.per_group for o in owners) + 1)
    assert total["all-gather"] == number * (within + updates + told)
    norms = sum(2 * layer.outputs + 3 * layer.outputs for layer in sharing.norms.values())
    stats = sum(x.size for x in jax.tree.leaves(state.batch_stats))
    assert total["all-reduce"] == number * (norms + stats + 2)  # and loss and error
    counts = sent(owners)
    in_groups = sum((m - 1) * piece for m, piece in zip(members, pieces))
    assert counts.statistics + counts.gradients == (devices - 1) * sum(pieces) + in_groups
    assert counts.updates == updates * (devices - 1) // devices
    assert counts.inversions == 0
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    _, said = explain_sharing(sharing, parameters, number)
    around = 2 * (devices - 1) / devices  # what a device sends in a ring's all-reduce
    of_norms = sum(layer.outputs for layer in sharing.norms.values())
    for numbers, what in (
        (counts.gradients + around * 2 * of_norms, "of gradients"),
        (counts.updates, "of updates"),
        (counts.statistics + around * 3 * of_norms, "of statistics"),
    ):
        assert f"{decimal(number * round(numbers) / 1e6)} MB {what}" in said


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(
            {"optimizer.fisher": "1mc", "optimizer.freeze": ("stem*",)}, marks=pytest.mark.long
        ),
        {"optimizer.freeze": ("kernel", "bias")},
        pytest.param({"optimizer.statistics_dtype": "bfloat16"}, marks=pytest.mark.long),
    ],
)
def test_it_goes_with_what_other_keys_leave_out_or_change(x64, keys):
    """Traces the step, with frozen parameters, and with statistics of 16 bits in a float64 run."""
    plan_run(config_at(2, **keys)).trace()


@pytest.mark.long
def test_images_may_be_smaller_than_the_run_was_planned_with(x64, tmp_path):
    keys = {"data.augment": "progressive_resizing", "data.augment_options": {"end_epoch": 0.2}}
    config = config_at(2, **keys)
    plan = plan_run(config)
    assert {shape for _, shape, _ in programs_between(plan, 0, UPDATES)} != {plan.image_shape}
    assert train.run(config, tmp_path).complete
    assert np.isfinite(losses(tmp_path)).all()


def test_the_memory_of_a_device_is_planned_for_its_part_of_what_is_kept():
    keys = {"model.name": "test_second_order:Small", "batch_size": 64, "dtype": "float32"}
    run = build(config_at(4, **keys))
    kept = run.program.start().curvature
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(kept))
    assert curvature_bytes(run.plan) == held < sum(x.nbytes for x in jax.tree.leaves(kept))


def test_what_is_not_due_is_left_out():
    """Finds what reduces statistics in branches of conditions, and nowhere else."""
    keys = {"model.name": "test_second_order:Small", "batch_size": 64, "dtype": "float32"}
    run = build(config_at(4, **keys))
    compiled = run.program.compile_train_step()
    text = compiled.as_text()
    branches = set(
        re.findall(r"%[\w.-]+", " ".join(re.findall(r"branch_computations=\{.*?\}", text)))
    )
    branches |= set(re.findall(r"(?:true|false)_computation=(%[\w.-]+)", text))
    stacks = run.plan.second_order.precondition.sharing.stacks.values()
    owners = [stack.owner for stack in stacks]
    always = [size for name, size in collectives(compiled, "reduce-scatter") if name == "ENTRY"]
    gradients, statistics = numbers_owned(owners)
    assert sum(always) == 4 * sum(gradients)
    in_branches = {n: size for n, size in collectives(compiled, "reduce-scatter") if n != "ENTRY"}
    assert sum(in_branches.values()) == 4 * sum(statistics)
    assert in_branches.keys() <= branches
