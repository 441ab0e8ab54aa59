"""Named augmentation and progressive resizing in whole runs: the same in every place, resumed."""

import functools
import itertools
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import final_state, tiny_config

from lbsgd import train
from lbsgd.data.order import random_below
from lbsgd.data.pipeline import load_job
from lbsgd.models.values import Values
from lbsgd.run.build import Run, build
from lbsgd.run.calls import programs_between
from lbsgd.run.checks import check_smaller_images
from lbsgd.run.explain import explain
from lbsgd.run.program import CompiledSteps
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
# Size by epoch in a run of three epochs of digits, of 23 updates each with kn=64.
RESIZING = {
    "data.augment": "progressive_resizing",
    "data.augment_options": {"end_epoch": 2, "multiple": 2},
    "data.erasing": 0.5,
    "total_steps": 50,
}
# Around the changes, by hand at 23 and 45.
UPDATES = [0, 1, 22, 23, 24, 44, 45, 46]
CODE = """\
import numpy as np
from lbsgd.data.order import random_below

def negative(seed, image_shape, stop=False):
    def augment(images, epochs, examples):
        if stop and examples.max() > 1000:
            raise RuntimeError(f"saw {examples.max()}")
        chosen = random_below(2, seed, "negative", epochs, examples) == 1
        return np.where(chosen[:, None, None, None], 16 - images, images)
    return augment
"""
counter = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """An augmentation outside of the package."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"negative_of_mine_{next(counter)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


def trained(run: Run) -> list[np.ndarray]:
    """Losses and parameters after the updates, one after the other."""
    state, losses = run.program.start(), []
    compiled = functools.cache(run.program.compile_train_step)
    batches = run.feed.train_batches()
    for update in UPDATES:
        (batch,) = batches.between(update, update + 1)
        shape = run.plan.image_shape_of(update)
        assert batch["image"].shape[-3:] == shape
        step = compiled(run.plan.placement_of(update), shape)
        state, metrics = step(state, batch, run.program.numbers.at(update))
        losses.append(float(metrics["train_loss"]))
    return [np.array(losses), *jax.tree.leaves(jax.device_get(state.params))]


@pytest.mark.long
@pytest.mark.parametrize("which", ["negative", "resizing"])
@pytest.mark.parametrize(("devices", "steps"), [(1, 2), (5, 1), (5, 2)])
def test_the_run_is_the_same_in_every_place(x64, module, which, devices, steps):
    """That batches are, in short tests too: the next one, and tests/data/test_pipeline.py."""
    keys = {**RESIZING, "dtype": "float64"}
    if which == "negative":
        keys |= {"data.augment": f"{module}:negative", "data.augment_options": {}}
    expected, found = (
        trained(build(tiny_config(**keys, devices=d, accumulation_steps=a)))
        for d, a in ((1, 1), (devices, steps))
    )
    for one, other in zip(expected, found):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(("devices", "steps"), [(5, 2)])
def test_a_named_augmentation_gives_the_same_rows_in_every_place(module, devices, steps):
    keys = {"data.augment": f"{module}:negative", "data.threads": devices}
    plain = build(tiny_config(devices=1))
    run = build(tiny_config(**keys, devices=devices, accumulation_steps=steps))
    seen = []
    for parts in (plain, run):
        job = parts.feed.train_batches().job(3)
        epochs, examples = parts.feed.train_batches().examples(3)
        images = load_job(job)["image"].reshape(-1, 8, 8, 1)
        rows = zip(epochs.ravel().tolist(), examples.ravel().tolist(), images)
        seen.append({(epoch, example): image for epoch, example, image in rows})
    assert seen[0].keys() == seen[1].keys()
    changed = 0
    for (epoch, example), image in seen[0].items():
        key = np.array([epoch]), np.array([example])
        negative = random_below(2, run.plan.config.seed, "negative", *key)[0]
        changed += int(negative)
        expected = 16 - image if negative else image
        np.testing.assert_array_equal(seen[1][epoch, example], expected)
    assert 16 < changed < 48  # of 64; all but once in 10^4


def test_each_batch_and_image_size_is_compiled_once():
    growth = {"batch_growth.sizes": (128,), "batch_growth.at_steps": (30,)}
    run = build(tiny_config(**RESIZING, **growth))
    plan = run.plan
    # By hand: 1,437 examples; kn=64 up to update 30, and then 128 to 1920 + 128 (t - 30).
    sizes = [(64, 4), (64, 6), (128, 6), (128, 8)]
    assert [(p.batch_size, shape[0]) for p, shape, _ in programs_between(plan, 0, 50)] == sizes
    assert [plan.image_shape_of(t)[0] for t in (0, 22, 23, 37, 38, 49)] == [4, 4, 6, 6, 8, 8]
    left = programs_between(plan, 31, 50)
    assert [(p.batch_size, shape[0]) for p, shape, _ in left] == sizes[2:]
    lines = explain(plan)
    (said,) = (line for line in lines if line.startswith("image size"))
    assert said == (
        "image size: 4x4 from update 0 (epoch 0), 6x6 from update 23 (epoch 1.024), 8x8 from "
        "update 38 (epoch 2.049): 3 sizes, each compiled once; evaluated at 8x8"
    )
    assert any("progressive_resizing(end_epoch=2, multiple=2)" in line for line in lines)


def test_each_update_takes_the_step_of_its_sizes():
    growth = {"batch_growth.sizes": (128,), "batch_growth.at_steps": (30,)}
    plan = build(tiny_config(**RESIZING, **growth)).plan
    compiled = []
    program = SimpleNamespace(plan=plan, compile_call=lambda *key: compiled.append(key) or key)
    steps = CompiledSteps(program, 25)
    for update in range(25, 50):
        placement, shape, count = steps(update)
        assert count == 1
        assert placement.batch_size == plan.timeline.batch_size(update)
        assert shape == plan.image_shape_of(update)
    steps.close()
    assert len(compiled) == 3  # 64 and 128 at 6x6, 128 at 8x8


@pytest.mark.long
def test_memory_is_that_of_whole_images(tmp_path, monkeypatch):
    """Accumulation is chosen by the step of the largest images, whichever come first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys = {"accumulation_steps": 0, "device_memory_gib": 1.0}
    plain, run = build(tiny_config(**keys)), build(tiny_config(**RESIZING, **keys))
    assert run.plan.placement == plain.plan.placement
    assert {shape for _, shape in run.program.compiled} == {(8, 8, 1)}


def test_precise_batch_norm_sees_whole_images():
    run = build(tiny_config(**RESIZING))
    plan = run.plan
    batches = run.feed.other_batches("precise_batch_norm", plan.timeline, plan.placements)
    assert batches.job(0).arrays["image"].shape[-3:] == (8, 8, 1)
    assert run.feed.train_batches().job(0).arrays["image"].shape[-3:] == (4, 4, 1)


@pytest.mark.long
@pytest.mark.parametrize("which", ["negative", "resizing"])
def test_a_run_stopped_within_a_size_goes_on_bitwise(tmp_path, module, which):
    """Saved at 28, between the changes at 23 and 45."""
    config = tiny_config(**RESIZING)
    if which == "negative":
        config = tiny_config(**{"data.augment": f"{module}:negative", "total_steps": 50})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.run(config, whole).complete
    assert not train.run(config, parts, should_stop=lambda done: done == 28).complete
    assert train.run(config, parts).complete
    expected, found = final_state(config, whole), final_state(config, parts)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.long
def test_an_error_in_a_thread_of_the_loader_ends_the_run_in_a_line(tmp_path, module):
    keys = {"data.augment": f"{module}:negative", "data.augment_options": {"stop": True}}
    config = tiny_config(**keys)
    with pytest.raises(ConfigError) as error:
        train.run(config, tmp_path / "run")
    line = str(error.value)
    assert f"{module}.py, line 7: RuntimeError: saw 1" in line  # of 1,001 to 1,436
    assert "\n" not in line


def test_a_network_for_which_the_small_images_are_too_small_is_an_error():
    """Whole images leave 2 x 2 values to the last layer, and the smallest 1."""
    keys = {"worker_batch_size": 2, "batch_size": 8}
    assert build(tiny_config(**keys))
    says = r"images of 4x4, of data.augment: batch norm: stage3_block1/norm1 normalises 2 values"
    with pytest.raises(ConfigError, match=says):
        build(tiny_config(**RESIZING, **keys))


def test_a_network_with_other_parameters_for_small_images_is_an_error():
    def shapes(inputs):
        return {"dense": {"kernel": jax.ShapeDtypeStruct((inputs, 10), np.float32)}}

    config, none = tiny_config(), Values(examples=1, training=True)
    check_smaller_images(config, (4, 4), shapes(64), shapes(64), none)
    with pytest.raises(ConfigError, match="images of 4x4, for which the network has other param"):
        check_smaller_images(config, (4, 4), shapes(64), shapes(16), none)


def files_of_the_docs() -> list[str]:
    text = (ROOT / "docs" / "data.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def documented(tmp_path, monkeypatch) -> str:
    """A module of all the files that the docs show."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mine_{next(counter)}"
    files = files_of_the_docs()
    assert all(len(file.splitlines()) < 30 for file in files)
    (tmp_path / f"{name}.py").write_text("\n".join(files))
    return name


def test_the_cutout_of_the_docs_cuts_a_square_out_of_every_image(documented):
    keys = {"data.augment": f"{documented}:cutout", "data.augment_options": {"size": 4}}
    before, after = (build(tiny_config(**some)) for some in ({}, keys))
    images = [load_job(run.feed.train_batches().job(0))["image"] for run in (before, after)]
    changed = images[0] != images[1]
    assert changed.any(axis=(3, 4, 5)).all()
    assert (images[1][changed] == 0).all()
    for image in changed.reshape(-1, 8, 8):
        rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) < 4


def test_both_of_the_docs_augment_and_grow(documented):
    keys = {"data.augment": f"{documented}:both", "data.augment_options": {"end_epoch": 2}}
    before, after = (build(tiny_config(**some, total_steps=50)) for some in ({}, keys))
    assert after.plan.image_sizes.distinct == [(4, 4), (6, 6), (8, 8)]
    images = [load_job(run.feed.train_batches().job(48))["image"] for run in (before, after)]
    assert (images[0] != images[1]).any(axis=(3, 4, 5)).mean() > 0.5


@pytest.mark.long
def test_the_command_of_the_docs_trains(tmp_path):
    (tmp_path / "mine.py").write_text(files_of_the_docs()[0])
    command = [sys.executable, "-m", "lbsgd.main", "train"]
    command += [f"--config={ROOT}/configs/digits.py", "--config.total_epochs=0"]
    command += ["--config.total_steps=3", "--config.learning_rate.warmup=none"]
    command += ["--config.learning_rate.decay=none", "--config.data.augment=mine:cutout"]
    for option, code, says in (
        ("size=2", 0, "mine:cutout(size=2)"),
        ("size=9", 2, "mine.py, line 11: ValueError: bound must be 1 to 2^32, not 0"),
        ("sise=2", 2, "(mine.py, line 6) has no option 'sise'; the nearest that it has is 'size'"),
    ):
        ended = subprocess.run(
            [*command, f"--config.data.augment_options.{option}", f"--workdir={option}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == code, ended.stderr
        assert says in ended.stderr + ended.stdout
        assert "Traceback" not in ended.stderr
