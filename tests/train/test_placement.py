"""The run is a function of its config, never of where its workers are placed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import all_reduces

from lbsgd.data.pipeline import load_job
from lbsgd.run.build import Run, build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.restoring import state_to_store

UPDATES = 20
PLACES = [
    (devices, steps)
    for devices in (1, 2, 3, 4, 5, 6, 8)
    for steps in (1, 2, 4)
    if (devices, steps) != (1, 1)
]
# Even and odd, with and without idle slots; `make test-all` has the whole table.
QUICK = [(8, 3, 2)]


def small_run(workers: int, devices: int, steps: int, **keys: object) -> Run:
    """A small network and k workers of 2 examples, with all that could depend on the place."""
    config = default_config()
    config.update(
        {
            "dtype": "float64",
            "batch_size": 2 * workers,
            "worker_batch_size": 2,
            "total_steps": UPDATES,
            "devices": devices,
            "accumulation_steps": steps,
            "label_smoothing": 0.1,
            "model": {"name": "tiny_network:tiny_resnet"},
            "learning_rate": {"reference_batch_size": 16, "warmup_epochs": 0.2},
            "data": {"crop": "padded", "crop_padding": 1, "flip": True},
        }
    )
    config.update_from_flattened_dict(keys)
    return build(resolve(config))


def train(run: Run) -> dict[str, np.ndarray]:
    """Metrics of every update and the final state, by name."""
    step, numbers = run.program.compile_train_step(), run.program.numbers
    state = run.program.start()
    metrics = []
    for update, batch in enumerate(run.feed.train_batches().between(0, UPDATES)):
        state, values = step(state, batch, numbers.at(update))
        metrics.append(jax.device_get(values) | numbers.reported(update))
    whole = state_to_store(run.program, state)  # of what devices own, too
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get((metrics, whole)))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def on_one_device():
    """Results for k workers on one device without accumulation, computed once for each k."""
    jax.config.update("jax_enable_x64", True)
    results = {}

    def result(workers: int) -> dict[str, np.ndarray]:
        if workers not in results:
            results[workers] = train(small_run(workers, 1, 1))
        return results[workers]

    yield result
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("workers", "devices", "steps"),
    [
        pytest.param(k, d, a, marks=[] if (k, d, a) in QUICK else pytest.mark.long)
        for k in (24, 8)
        for d, a in PLACES
    ],
)
def test_training_is_the_same_in_every_place(on_one_device, workers, devices, steps):
    expected = on_one_device(workers)
    found = train(small_run(workers, devices, steps))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


NATURAL = {
    "optimizer.name": "spngd",
    "optimizer.damping": 1e-2,
    "optimizer.fisher_share": 0.5,
    "optimizer.stale_threshold": 0.3,
    "optimizer.weight_rescaling": "larger",
    "learning_rate.reference_learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def natural_on_one_device():
    with jax.enable_x64():
        yield train(small_run(8, 1, 1, **NATURAL))


# tests/optim/test_preconditioner.py and tests/train/test_mixed_minibatches.py are short.
@pytest.mark.long
@pytest.mark.parametrize(("devices", "steps"), [p for p in PLACES if p[0] != 6])
def test_natural_gradients_are_the_same_in_every_place(x64, natural_on_one_device, devices, steps):
    """Statistics of curvature, their intervals and inverses among them."""
    found = train(small_run(8, devices, steps, **NATURAL))
    assert found.keys() == natural_on_one_device.keys()
    intervals = [value.max() for name, value in found.items() if name.endswith("intervals.last")]
    assert max(intervals) > 1  # else nothing was stale
    for name, value in natural_on_one_device.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("devices", "steps", "group"),
    [
        pytest.param(8, 1, 4, id="group over four devices", marks=pytest.mark.long),
        pytest.param(2, 1, 4, id="group in the lanes of a device", marks=pytest.mark.long),
        pytest.param(4, 1, 4, id="group over two devices of two lanes"),
        pytest.param(2, 4, 2, id="accumulated groups", marks=pytest.mark.long),
        pytest.param(3, 1, 2, id="idle groups", marks=pytest.mark.long),
        pytest.param(1, 1, 8, id="one group", marks=pytest.mark.long),
    ],
)
def test_workers_with_synced_batch_norm_are_one_larger_worker(x64, devices, steps, group):
    """g workers of n with synced statistics compute what one worker of gn does."""
    keys = {"model.name": "cifar_resnet8", "model.width": 0.25}  # only our own may be synced
    synced = small_run(8, devices, steps, **keys, **{"batch_norm.synced_workers": group})
    merged = small_run(8, 1, 1, **keys, worker_batch_size=2 * group)
    expected, found = train(merged), train(synced)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "steps", [pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long), 4]
)
def test_each_gradient_byte_is_reduced_once_and_outside_the_accumulation(steps):
    run = small_run(24, 2, steps, dtype="float32")
    assert run.plan.placement.accumulation_steps == steps
    state = jax.eval_shape(run.plan.initial_state)
    loss_and_error = 2 * 4
    expected = loss_and_error + sum(
        4 * leaf.size for leaf in jax.tree.leaves((state.params, state.batch_stats))
    )
    lowered = run.program.lower_train_step()
    reduces = all_reduces(lowered.compile())
    assert sum(size for _, size in reduces) == expected
    assert {computation for computation, _ in reduces} == {"ENTRY"}
    if steps > 1:  # in the loop, in the form that a CPU runs fast
        forms = re.findall(r"dim_numbers = \[(.*)\], window", lowered.as_text())
        assert set(forms) == {"b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f"}


@pytest.mark.long
def test_idle_slots_change_nothing(x64):
    run = small_run(8, 5, 1, **{"total_steps": 1})
    assert run.plan.placement.slots == 10
    step = run.program.compile_train_step()
    state = run.program.start()
    local = load_job(run.feed.train_batches().job(0))
    copies = local["label"].copy()
    # Other labels in the two idle slots must change nothing at all.
    copies[0, 8:] = (copies[0, 8:] + 1) % 10
    results = []
    for labels in (local["label"], copies):
        batch = {"image": local["image"], "label": labels}
        batch = jax.device_put(batch, run.plan.placement.batch_sharding)
        fresh = jax.tree.map(jnp.copy, state)
        results.append(jax.device_get(step(fresh, batch, run.program.numbers.at(0))))
    jax.tree.map(np.testing.assert_array_equal, *results)
