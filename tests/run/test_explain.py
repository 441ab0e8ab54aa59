"""Checks what --explain prints: in which order, and how its numbers are written."""

import re

import pytest

from lbsgd.data.facts import given_facts
from lbsgd.run.config import default_config, resolve
from lbsgd.run.explain import explain
from lbsgd.run.plan import Plan, make_plan
from lbsgd.workers.topology import Topology

# What a line is of comes before what follows from it; notes come last.
ORDER = [
    "network",
    "task",
    "batch norm",
    "data",
    "augmentation",
    "machine",
    "minibatch",
    "all-reduce",
    "compiler options",
    "length",
    "calls",
    "learning rate",
    "optimizer",
    "accumulation",
    "diagnostics",
    "without effect",
]
POD = Topology(2048, 1, platform="tpu", device_memory=4096 * 2**30, asked=False)
LARGE = {
    "batch_size": 65536,
    "worker_batch_size": 8,
    "accumulation_steps": 5000,
    "total_epochs": 2000.0,
    "updates_per_call": 7,
    "allreduce.algorithm": "torus_2d",
    "allreduce.grid": (2048, 1),
    "batch_norm.precise_examples": 70000,
    "diagnostics.confusion.every_steps": 1000,
    "diagnostics.confusion.pairs": 2000,
    "diagnostics.confusion.batch_size": 4096,
    "data.source": "synthetic",
    "data.image_size": 16,
    "data.crop": "inception",
    "learning_rate.decay_epochs": (800.0, 1200.0, 1600.0),
    "batch_growth.sizes": (131072, 262144),
    "batch_growth.at_epochs": (1500.0, 1900.0),
    "optimizer.beta1": 0.5,  # without effect
}
CASES = {
    "steps": {},
    "polynomial": {"learning_rate.decay": "polynomial"},
    "grown in place of decay": {
        "batch_growth.sizes": (),
        "batch_growth.at_epochs": (),
        "batch_growth.in_place_of_decay": True,
        "batch_growth.largest": 655360,
    },
    "large images": {
        "batch_growth.sizes": (4_194_304,),
        "batch_growth.at_epochs": (1900.0,),
        "data.image_size": 1024,
        "batch_norm.synced_workers": 1024,
    },
    "padded": {"data.crop": "padded", "data.crop_padding": 1000, "data.image_size": 1200},
}


def plan_of(topology: Topology = POD, **keys: object) -> Plan:
    config = default_config()
    config.model.update({"name": "cifar_resnet8", "width": 0.25})
    config.update_from_flattened_dict({**LARGE, **keys})
    config = resolve(config)
    return make_plan(config, given_facts(config.data), topology)


def test_a_run_is_explained_by_what_it_is_first_and_notes_come_last():
    rooms = [line.partition(":")[0] for line in explain(plan_of())]
    assert list(dict.fromkeys(rooms)) == ORDER
    assert rooms == sorted(rooms, key=ORDER.index)


@pytest.mark.parametrize("case", CASES)
def test_large_numbers_have_separators(case):
    """But for values of keys and of the compiler's options, which are as they would be set."""
    *lines, unused = explain(plan_of(**CASES[case]))
    assert unused.startswith("without effect: ")
    text = "\n".join(line for line in lines if not line.startswith("compiler options: "))
    assert not re.findall(r".*(?<![\d.,])\d{4,}.*", text)
    assert re.search(r"\bkn=65,536\b", text)


PSUM = {"allreduce.algorithm": "psum", "allreduce.grid": (0, 0)}


@pytest.mark.parametrize(
    ("platform", "asked", "told"),
    [
        (
            "tpu",
            True,
            "xla_jf_crs_combiner_threshold_in_bytes=2097152, xla_enable_async_all_reduce=true, "
            "xla_tpu_enable_async_collective_fusion=true, "
            "xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true",
        ),
        (
            "gpu",
            False,
            "xla_gpu_all_reduce_combine_threshold_bytes=33554432, "
            "xla_gpu_enable_latency_hiding_scheduler=true, if the devices are GPUs",
        ),
        ("cpu", True, None),
    ],
)
def test_the_options_of_the_compiler_are_told(platform, asked, told):
    topology = Topology(2048, 1, platform=platform, asked=asked)
    lines = explain(plan_of(topology, **PSUM))
    found = [line for line in lines if line.startswith("compiler")]
    assert found == ([f"compiler options: {told}"] if told else [])
