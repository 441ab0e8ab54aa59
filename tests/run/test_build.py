"""The parts of a run, and the accumulation that fits the memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.run import build, explain
from lbsgd.run.config import default_config, resolve
from lbsgd.run.program import Program
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError
from lbsgd.train import run


def config(**keys: object):
    there = default_config()
    there.update(
        {
            "batch_size": 128,
            "worker_batch_size": 16,
            "total_steps": 2,
            "devices": 1,
            "model": {"name": "cifar_resnet8", "width": 0.5},
            "learning_rate": {"warmup": "none"},
        }
    )
    there.update_from_flattened_dict(keys)
    return resolve(there)


def plan_of(config):
    return build.build(config).plan


def memory(steps: int) -> int:
    """Bytes of the compiled step: its own, and six more batches that wait."""
    parts = build.build(config(accumulation_steps=steps))
    analysis = parts.program.compile_train_step().memory_analysis()
    own = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    own += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    return own + 6 * parts.plan.placement.slots * 16 * (8 * 8 + 4)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lbsgd"


@pytest.fixture
def compilations(monkeypatch):
    """The placements that steps were compiled for."""
    seen = []
    lower = Program.lower_train_step
    monkeypatch.setattr(
        Program, "lower_train_step", lambda run, p, shape: seen.append(p) or lower(run, p, shape)
    )
    return seen


@pytest.mark.long
def test_automatic_accumulation_takes_few_steps_that_fit(own_cache):
    """By compiling every choice, 8 workers in 1, 2, 3, 4 or 8 steps: none with 25% to spare."""
    needed = {steps: memory(steps) for steps in (1, 2, 3, 4, 8)}
    assert list(needed.values()) == sorted(needed.values(), reverse=True)
    for limit in (needed[1], 1.25 * needed[1], needed[3], needed[8]):
        found = build.build(config(accumulation_steps=0, device_memory_gib=limit / 2**30))
        steps = found.plan.placement.accumulation_steps
        assert needed[steps] <= limit
        fewer = [size for other, size in needed.items() if other < steps]
        assert all(1.25 * size > limit for size in fewer)
    with pytest.raises(ConfigError, match=r"at once, 1, need .* MiB, it has"):
        build.build(config(accumulation_steps=0, device_memory_gib=(needed[8] - 1) / 2**30))


@pytest.mark.long
def test_automatic_accumulation_compiles_once_more_and_then_remembers(own_cache, compilations):
    """On a CPU, whose memory is more than these 8 workers need at once."""
    parts = build.build(config(accumulation_steps=0))
    assert [p.lanes for p in compilations] == [1, 8]
    assert parts.plan.placement.accumulation_steps == 1
    parts.program.compile_train_step()
    assert len(compilations) == 2
    assert build.build(config(accumulation_steps=0)).plan.placement == parts.plan.placement
    assert len(compilations) == 2


def test_a_folder_of_another_run_is_refused_before_anything_is_compiled(
    own_cache, compilations, tmp_path
):
    folder = Workdir(tmp_path / "run")
    folder.claim({"batch_size": 1}, {}, {}).close()
    (folder.checkpoints / "1").mkdir()
    with pytest.raises(ConfigError, match="holds a run that differs in"):
        run(config(accumulation_steps=0), folder.path)
    assert compilations == []


@pytest.mark.long
def test_what_cannot_be_compiled_is_too_much(own_cache, monkeypatch):
    compile_train_step = Program.compile_train_step
    most = 4

    def compile_some(run, placement=None):
        if placement.lanes > most:
            jax.jit(lambda: jnp.ones(2**60, jnp.int8) + jnp.int8(1))()  # more than there is
        return compile_train_step(run, placement)

    monkeypatch.setattr(Program, "compile_train_step", compile_some)
    assert build.build(config(accumulation_steps=0)).plan.placement.lanes == 4
    most = 0
    with pytest.raises(ConfigError, match="at once, 1, need more than could be compiled, it has"):
        build.build(config(accumulation_steps=0, seed=1))


def test_evaluation_takes_as_many_images_as_an_accumulation_step():
    """2 devices of 2 lanes of n=16, where there are 8 workers in 2 steps."""
    parts = build.build(config(devices=2, accumulation_steps=2))
    assert parts.feed.eval_batches().batch_size == 2 * 2 * 16
    assert build.build(config(**{"evaluation.batch_size": 7})).feed.eval_batches().batch_size == 7


def test_explain_names_accumulation_that_is_not_needed():
    """8 workers on 8 devices have nothing to accumulate."""
    parts = build.build(config(devices=8, accumulation_steps=4))
    lines = explain.explain(parts.plan)
    assert "accumulation: 4 steps asked for, 1 holds all workers" in lines
    assert any("8 devices x 1 lane x 1 accumulation step" in line for line in lines)


@pytest.mark.parametrize(("batch_size", "said"), [(1424, False), (1440, True)])
def test_explain_tells_of_a_batch_larger_than_the_training_set(batch_size, said):
    """The digits have 1,437."""
    lines = explain.explain(plan_of(config(batch_size=batch_size)))
    line = (
        "minibatch: kn=1,440 is more than the 1,437 training examples: an update sees examples "
        "more than once"
    )
    assert (line in lines) == said
    assert any("more than once" in line for line in lines) == said


def test_explain_has_the_notes_of_both_splits(tmp_path):
    for split, label in (("train", 3), ("validation", 2)):
        labels = np.arange(200) % label + 1
        np.savez(tmp_path / f"{split}.npz", images=np.zeros((200, 8, 8), np.uint8), labels=labels)
    keys = {"data.source": "npz", "data.dir": str(tmp_path)}
    lines = explain.explain(plan_of(config(**keys)))
    assert any(line.startswith("data: training: labels start at 1, not at 0") for line in lines)
    assert "data: validation: no examples of 2 of the 4 classes: 0, 3" in lines


def test_parameter_table_says_what_decays():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in explain.parameter_table(plan_of(config())).splitlines()
        if "|" in line
    ]
    table = {name: (role, size, decayed) for name, role, _, size, decayed, *_ in rows[1:]}
    assert table["classifier/bias"] == ("bias", "10", "no")
    assert table["classifier/kernel"] == ("kernel", "320", "yes")
    assert table["stem_norm/scale"] == ("norm scale", "8", "no")
    assert all((role == "kernel") == (decayed == "yes") for role, _, decayed in table.values())


LAMB = {"name": "lamb"}


def of_optimizer(**keys: object) -> dict[str, object]:
    return {f"optimizer.{key}": value for key, value in keys.items()}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "optimizer: SGD, Nesterov momentum 0.9 (equation (9), rate outside the buffer); "),
        (
            {"optimizer.momentum": 0.0},
            "optimizer: SGD, no momentum; coupled weight decay 0.0001 on ",
        ),
        ({"optimizer.weight_decay": 0.0}, "rate outside the buffer); no weight decay"),
        (
            of_optimizer(name="lars", momentum_form="rate_inside"),
            "optimizer: LARS, Nesterov momentum 0.9 (equation (10), rate and trust ratio inside "
            "the buffer, with momentum correction); coupled weight decay 0.0001 on 8 of 23 "
            "parameter arrays; trust ratio 0.001 on kernels",
        ),
        (
            of_optimizer(**LAMB),
            "optimizer: LAMB, beta 0.9 and 0.999, epsilon 1e-06; weight decay 0.0001 on 8 of 23 "
            "parameter arrays; trust ratio on kernels",
        ),
        (
            of_optimizer(**LAMB, norm_clip=(0.0, 10.0)),
            "trust ratio of norms from 0 to 10 on kernels",
        ),
        (
            {
                "learning_rate.warmup": "gradual",
                "learning_rate.warmup_from": "zero",
                "learning_rate.warmup_epochs": 0.0,
                "learning_rate.warmup_steps": 1,
                "learning_rate.warmup_power": 2.5,
                "learning_rate.decay": "polynomial",
                "learning_rate.decay_end_rate": 1e-4,
                "learning_rate.decay_past_end_steps": 1,
            },
            "learning rate: 0.05 = 0.1 x 128/256; gradual warmup 1 update from 0, power 2.5; "
            "decay: polynomial, power 2, to 0.0001 at update 3",
        ),
        (
            {
                "learning_rate.warmup": "gradual",
                "learning_rate.warmup_from": "zero",
                "learning_rate.warmup_epochs": 0.0,
                "learning_rate.warmup_steps": 1,
                "learning_rate.decay": "cosine",
                "learning_rate.decay_from": "start",
            },
            "decay: cosine, counted from update 0: 0.025 after warmup",
        ),
        (
            {
                "learning_rate.warmup": "none",
                "learning_rate.decay": "polynomial",
                "learning_rate.decay_start_steps": 1,
                "learning_rate.decay_end_steps": 5,
            },
            "no warmup; decay: polynomial from update 1, power 2, to 0 at update 5",
        ),
        (
            of_optimizer(name="spngd", initial_damping=0.1, damping=0.01, damping_warmup_steps=9),
            "SP-NGD, empirical Fisher, damping 0.1 falling to 0.01, times 16 for norms",
        ),
        (
            of_optimizer(name="lars", trust_at_zero="formula"),
            "trust ratio 0.001 on kernels, by its formula where a norm is 0",
        ),
    ],
)
def test_explain_says_what_optimizer_and_schedule_are(keys, says):
    lines = explain.explain(plan_of(config(**keys)))
    assert any(says in line for line in lines), lines


CROPPED = {"data.source": "synthetic", "data.crop": "inception", "data.image_size": 16}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "evaluated on the centre 16 of a short side of 18"),
        ({"data.evaluation_short_side": 18}, "evaluated on the centre 16 of a short side of 18"),
        (
            {"data.evaluation_short_side": 256},
            "the centre 16 of a short side of 256 (256/224 of 16, as is usual, would be 18: set it "
            "to 0)",
        ),
        ({"data.evaluation_short_side": 16}, "a short side of 16 (256/224 of 16, as is usual"),
        ({"data.crop_antialias": False}, "resized to 16;"),
        ({"data.crop_antialias": True}, "resized to 16, antialiased;"),
        (
            {"data.crop": "random"},
            "random 16 of a short side of 18; evaluated on the centre 16 of a",
        ),
        (
            {"data.erasing": 0.5, "data.erasing_transpose": True},
            "erasing 0.5, boxes of 0.02 to 0.4 of the area, height / width 0.3 to 3.33, turned",
        ),
    ],
)
def test_explain_says_what_evaluation_sees(keys, says):
    lines = explain.explain(plan_of(config(**{**CROPPED, **keys})))
    (line,) = [line for line in lines if line.startswith("augmentation: ")]
    assert says in line
    assert ("usual" in line) == ("usual" in says)


@pytest.mark.parametrize("antialias", [False, True])
def test_training_crops_are_antialiased_where_the_config_says_so(antialias):
    run = build.build(config(**CROPPED, **{"data.crop_antialias": antialias}))
    assert run.feed.train_batches().loader.view.antialias is antialias


def test_evaluation_takes_the_centre_of_the_side_that_follows():
    run = build.build(config(**CROPPED))
    assert run.feed.eval_batches().loader.view.short_side == 18


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb"])
def test_parameter_table_says_what_has_a_trust_ratio(name):
    table = explain.parameter_table(plan_of(config(**of_optimizer(**LAMB | {"name": name}))))
    rows = [
        [c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line
    ]
    column = rows[0].index("Trust")
    for row in rows[1:]:
        role, trust = row[1], row[column]
        assert trust == ("yes" if role == "kernel" and name != "sgd" else "no")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"data.mean": (0.1, 0.2, 0.3)}, "data.mean has 3 numbers, the images 1 channels"),
        ({"data.std": (0.0,)}, "data.std must not hold 0"),
        ({"batch_norm.synced_workers": 3}, "synced_workers=3 does not divide the k=8"),
    ],
)
def test_parts_that_do_not_fit_together_are_an_error(keys, says):
    with pytest.raises(ConfigError, match=says):
        build.build(config(**keys))


# Of 8x8 pixels ResNet-18 leaves one from its second stage on.
DEEP = {"model.name": "resnet18", "model.width": 1 / 16}
CONFUSION = {"diagnostics.confusion.every_steps": 1}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"worker_batch_size": 1}, "1 value of a channel .* worker_batch_size or batch_norm.sync"),
        ({"worker_batch_size": 2}, "2 values of a channel"),
        ({"worker_batch_size": 1, "batch_norm.synced_workers": 2}, "2 values of a channel"),
        (
            {**CONFUSION, "diagnostics.confusion.batch_size": 2},
            "2 .*raise diagnostics.confusion.batch",
        ),
        ({"model.normalization": "group"}, "2 values at a time, .* larger images, or raise model"),
    ],
)
def test_a_normalisation_below_which_nothing_learns_is_an_error(keys, says):
    with pytest.raises(ConfigError, match=f"stage2_block1/norm1 normalises {says}"):
        build.build(config(**{**DEEP, **keys}))


@pytest.mark.parametrize(
    "keys",
    [
        {"worker_batch_size": 4},
        {"worker_batch_size": 1, "batch_norm.synced_workers": 4},
        {"worker_batch_size": 1, "model.normalization": "none"},
        {"worker_batch_size": 1, "model.name": "cifar_resnet8"},  # 2x2 pixels at its end
        {"model.normalization": "group", "model.width": 1.0, "batch_norm.epsilon": 1e-3},
        {"diagnostics.confusion.batch_size": 2},  # which is not measured
    ],
)
def test_a_normalisation_of_a_few_values_is_none(keys):
    build.build(config(**{**DEEP, **keys}))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "network: products of float32 at precision 'highest': in full on every device"),
        ({"matmul_precision": "high"}, "'high': TF32 on a GPU, three bfloat16 passes on a TPU"),
        (
            {"matmul_precision": "default", "dtype": "bfloat16"},
            "only the classifier has products of float32, they are at",
        ),
        ({"model.normalization": "group"}, "group norm: of each example, in up to 32 groups"),
        ({"model.normalization": "none"}, "normalization: none; convolutions have biases"),
        ({}, "batch norm: per worker, over 16 examples"),
    ],
)
def test_explain_says_how_products_and_normalisation_are(keys, says):
    lines = explain.explain(plan_of(config(**keys)))
    assert any(says in line for line in lines), lines
    norms = [line for line in lines if line.startswith(("batch norm", "group norm", "normaliz"))]
    assert len(norms) == 1


def test_evaluations_and_checkpoints_come_at_rounded_epochs_and_at_the_end():
    keys = {"evaluation.every_epochs": 0.5, "checkpoint.every_steps": 8, "total_steps": 30}
    parts = build.build(config(**keys))
    halves = {round(i * 0.5 * 1437 / 128) for i in range(1, 6)}
    assert parts.plan.evaluate_after == halves | {30}
    assert parts.plan.save_after == {8, 16, 24, 30}
    assert math.isclose(parts.plan.timeline.epoch(30), 30 * 128 / 1437)


def test_float64_starts_from_the_weights_of_float32(x64):
    """So that the two can be compared."""
    single = build.build(config()).program.start().params
    double = build.build(config(dtype="float64")).program.start().params
    for narrow, wide in zip(jax.tree.leaves(single), jax.tree.leaves(double)):
        assert (narrow.dtype, wide.dtype) == ("float32", "float64")
        np.testing.assert_array_equal(wide, np.asarray(narrow, np.float64))


def test_other_data_of_the_same_shape_are_another_run(tmp_path):
    labels = np.arange(200) % 10
    identities = []
    for folder, pixel in (("a", 0), ("b", 0), ("c", 1)):
        images = np.zeros((200, 8, 8), np.uint8)
        images[7, 3, 3] = pixel
        (tmp_path / folder).mkdir()
        for split in ("train", "validation"):
            np.savez(tmp_path / folder / f"{split}.npz", images=images, labels=labels)
        keys = {"data.source": "npz", "data.dir": str(tmp_path / folder)}
        identities.append(build.build(config(**keys)).plan.identity())
    assert identities[0] == identities[1] != identities[2]
