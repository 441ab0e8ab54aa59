"""Plans: what is known of a run without its data and its machine."""

import builtins
import pathlib
import re
import runpy

import jax
import pytest

from lbsgd.checkpoint.manifest import named_leaves
from lbsgd.data.facts import TFDS, Facts, check_given, facts_of, given_facts
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.run.build import build, plan_run
from lbsgd.run.config import default_config, resolve
from lbsgd.run.explain import explain
from lbsgd.run.plan import make_plan
from lbsgd.step import memory
from lbsgd.system import devices
from lbsgd.system.errors import ConfigError
from lbsgd.workers.topology import Topology

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
IMAGENET = sorted(path.name for path in CONFIGS.glob("imagenet_*.py"))
POD = Topology(devices=256, processes=32, platform="tpu", device_memory=16 * 2**30)


def config_of(file: str, arg: str = "", **keys: object):
    config = runpy.run_path(str(CONFIGS / file))["get_config"](arg)
    config.update_from_flattened_dict(keys)
    return resolve(config)


def small(**keys: object):
    config = default_config()
    config.update({"batch_size": 512, "worker_batch_size": 2, "total_steps": 3, "devices": 256})
    config.model.update({"name": "cifar_resnet8", "width": 0.25})
    config.learning_rate.warmup = "none"
    config.update_from_flattened_dict(keys)
    return resolve(config)


@pytest.fixture
def no_devices(monkeypatch):
    """JAX with devices that nobody may ask for."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a plan asked for the devices of this machine")

    for name in ("devices", "device_count", "local_devices", "process_count", "process_index"):
        monkeypatch.setattr(jax, name, refuse)
    monkeypatch.setattr(jax, "default_backend", refuse)
    monkeypatch.setattr(devices, "memory_limit", refuse)


@pytest.fixture
def no_files(monkeypatch):
    """A disk that nobody may read, but for Python's own modules."""
    opened = builtins.open

    def refuse(file, *args, **kwargs):
        if "site-packages" not in str(file) and not str(file).endswith((".py", ".pyc")):
            pytest.fail(f"a plan opened {file}")
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(pathlib.Path, "open", refuse)


def test_a_plan_opens_no_file_and_asks_no_device(no_devices, no_files):
    config = small(**{"batch_norm.synced_workers": 2, "batch_growth.sizes": (1024,)} | GROWTH)
    plan = plan_run(config)
    assert (plan.topology.devices, plan.placement.lanes) == (256, 1)
    assert plan.placements[1024].lanes == 2
    assert "256 devices" in "\n".join(explain(plan))


GROWTH = {"batch_growth.at_steps": (2,)}


def test_a_step_for_256_devices_is_traced_and_lowered_without_them():
    """For TPUs on a CPU; its all-reduce is over all 256."""
    plan = make_plan(small(), given_facts(small().data), POD)
    text = plan.trace().lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.all_reduce" in text
    assert "mhlo.num_partitions = 256" in text


def test_a_state_is_stored_by_the_names_of_its_parts():
    """The update index is the only counter besides that of updates that were skipped."""
    named = named_leaves(make_plan(small(), given_facts(small().data), POD).state_shapes)
    assert {name.partition("/")[0] for name in named} == {
        "update_index",
        "params",
        "batch_stats",
        "opt_state",
        "skipped",
    }
    counters = {name for name, leaf in named.items() if leaf.dtype == jax.numpy.int32}
    assert counters == {"update_index", "skipped"}


@pytest.mark.parametrize("kind", ["digits", "synthetic"])
def test_known_facts_are_those_of_the_data(kind):
    data = small(**{"data.source": kind, "data.synthetic_examples": 12}).data
    opened, known = facts_of(build_sources(data)), given_facts(data)
    sizes = ("examples", "validation_examples", "classes", "image_shape")
    assert [getattr(opened, key) for key in sizes] == [getattr(known, key) for key in sizes]


def test_imagenet_is_known_by_name():
    """Russakovsky et al. 2015: 1,281,167 images of 1,000 classes, 50,000 to validate on."""
    found = given_facts(config_of("imagenet_goyal.py").data)
    assert found == Facts(1_281_167, 50_000, 1000, (224, 224, 3))
    assert TFDS["cifar10"] == Facts(50_000, 10_000, 10, (32, 32, 3))


def test_keys_say_what_is_not_known():
    keys = {"data.source": "folder", "data.dir": "nowhere", "data.classes": 7}
    with pytest.raises(ConfigError, match="nowhere"):
        plan_run(small(**keys))
    keys |= {"data.examples": 999, "data.validation_examples": 11, "data.image_shape": (32, 32, 3)}
    plan = plan_run(small(**keys))
    assert plan.data == Facts(999, 11, 7, (32, 32, 3))
    assert plan.timeline.examples_per_epoch == 999


@pytest.mark.parametrize(
    ("key", "value"),
    [("examples", 1), ("validation_examples", 361), ("classes", 9), ("image_shape", (8, 8, 3))],
)
def test_keys_that_are_not_true_of_the_data_are_a_line(key, value):
    config = small(**{f"data.{key}": value, "devices": 1})
    with pytest.raises(ConfigError, match=rf"^data\.{key}={re.escape(str(value))}, but the data"):
        build(config)
    check_given(small().data, facts_of(build_sources(small().data)))


def test_what_the_config_leaves_open_the_machine_tells():
    """8 CPU devices here; memory is asked for only where it decides something."""
    assert Topology.planned(small(devices=0)) is None
    assert Topology.planned(small(accumulation_steps=0)) is None
    assert Topology.here(small(devices=0)).devices == 8
    with pytest.raises(ConfigError, match="devices=256, but there are only 8"):
        Topology.here(small())


def test_hosts_of_a_planned_hierarchy():
    allreduce = {"allreduce.algorithm": "hierarchical"}
    plan = make_plan(small(**allreduce), given_facts(small().data), POD_OF_HOSTS)
    assert any("hierarchical over 256 devices" in line and "8x32" in line for line in explain(plan))
    with pytest.raises(ConfigError, match="spread evenly over 3 processes"):
        Topology.planned(small(), processes=3)


POD_OF_HOSTS = Topology.planned(small(), processes=32)


def test_what_nobody_asked_is_said():
    lines = explain(plan_run(small()))
    assert "machine: planned for 256 devices of 1 process; this machine was not asked" in lines
    assert any(line.startswith("data: not opened") for line in lines)
    here = explain(build(small(devices=2)).plan)
    assert not any("not asked" in line or "not opened" in line for line in here)


def test_hosts_that_are_not_known_are_asked_for():
    """Nobody says how many processes the 256 devices belong to, and here are no 256."""
    config = small(**{"allreduce.algorithm": "hierarchical"})
    assert Topology.planned(config) is None
    with pytest.raises(ConfigError, match=r"only 8 .*; or, to plan for .*, set .* allreduce\.grid"):
        plan_run(config)
    assert Topology.planned(config, processes=64).hosts == (4, 64)


def test_a_check_is_of_keys_that_are_used():
    """Images that are made on the devices are not padded."""
    keys = {"data.source": "synthetic", "data.synthetic_on_device": True, "data.image_size": 4}
    keys |= {"worker_batch_size": 8, "devices": 8}
    plan = plan_run(small(**keys, **{"data.crop": "padded", "data.crop_padding": 1}))
    assert any("crop_padding" in line or "data.crop" in line for line in plan.unused)
    keys |= {"data.synthetic_on_device": False, "data.crop": "padded", "data.crop_padding": 4}
    with pytest.raises(ConfigError, match="can leave nothing of images of 4x4"):
        plan_run(small(**keys))


@pytest.mark.parametrize("steps", [1, 2])
def test_an_estimate_of_more_lanes_is_no_less_than_what_they_are_traced_to_need(steps):
    """The fewest lanes stand for all: activations are scaled, parameters' gradients are not.

    Were these scaled too, twice the lanes would need twice the memory; of this network, whose
    gradient is as large as its activations, it is at most a quarter more than traced.
    """
    config = small(devices=1, batch_size=16, worker_batch_size=2)
    plan = make_plan(config, given_facts(config.data), Topology(1))
    shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(plan.state_shapes.params)}
    few, many = (
        memory.peak(plan.trace(plan.place(16, steps * fewer)).jaxpr, shapes) for fewer in (2, 1)
    )
    assert sum(many) <= few.fixed + 2 * few.others <= 1.25 * sum(many)
    assert 2 * sum(few) > 1.25 * sum(many)


@pytest.mark.long
@pytest.mark.parametrize("number", [8, 256, 1024])
@pytest.mark.parametrize("file", IMAGENET)
def test_every_imagenet_config_is_explained_for_any_pod(file, number, no_devices, no_files):
    """Its batch is spread over the devices, as many steps as 80 GiB ask for; no data, no device."""
    keys = {"devices": number, "device_memory_gib": 80.0, "accumulation_steps": 0}
    plan = plan_run(config_of(file, **keys))
    placement = plan.placement
    assert placement.devices == number
    assert placement.batch_size == placement.workers * placement.worker_batch_size
    (line,) = (line for line in explain(plan) if line.startswith("accumulation:"))
    assert re.search(r"step.*, estimated from the traced step: .* GiB of the 80\.00 GiB", line)
