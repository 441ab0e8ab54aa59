"""Configs at random: each describes a run, or ends in one line that says what to put right.

Keys are the config's own and misspelt ones, values of the right type and of any other, extremes
most of all. What is named in `LARGE` once filled the memory, or never came to an end.
"""

import contextlib
import json
import math
import pathlib
import resource
import signal
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from hanging import HANG_SECONDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import digits
from lbsgd.data.pipeline import load_job
from lbsgd.data.sources.catalogue import SOURCES
from lbsgd.models.resnet import IMAGENET
from lbsgd.run.build import Run, build
from lbsgd.run.config import KEYS, default_config, flatten, resolve, run_keys
from lbsgd.run.explain import explain, parameter_table
from lbsgd.system.errors import ConfigError
from lbsgd.workers import fit

DEFAULTS = dict(flatten(default_config()))
WORDS = {key.rsplit(".", 1)[-1] for key in DEFAULTS} | {"unknown"}
# Far longer than any of them takes, and far more than any of them needs.
BYTES = 4 * 2**30
# A path may be long, but nothing else may be.
LONGEST = 20_000

INTEGERS = [0, 1, 2, 3, 8, 31, 32, 64, 255, 4096, 10**6, 10**8, 10**9, 10**15, 10**18]
INTEGERS += [-1, -(2**63), 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, 10**5000]
FLOATS = [0.0, -0.0, 0.5, 0.1, 1.0, 0.999999999, 2.0, 30.0, 90.0, 1e3, 1e6, 1e9, 1e15, 1e30]
FLOATS += [5e-324, 1e-300, 1e-9, -1.0, 1e300, 1e308, math.inf, -math.inf, math.nan]
TEXTS = ["", " ", "a", "None", "nan", "0", "/", "~", "~nobody/x", "~no_such_user/x", "../" * 40]
TEXTS += ["/dev/null", "/proc/self/mem", "/proc/self/fd", "/root", "gs://a/b", "file:///etc", "{}"]
TEXTS += [
    "\0",
    "a\0b",
    "a\nb",
    "\u2028",
    "\u202e",
    "\ud800",
    "é\u0301",
    "\U0001f4a9",
    "%s",
    "$(id)",
]
TEXTS += ["x" * 5000, "/" + "x" * 300, "a/" * 2000, "train[:10%]", "a/b:1.0.0", *SOURCES]
TEXTS += [
    *IMAGENET,
    "cifar_resnet8",
    "cifar_resnet20",
    *(choice for key in KEYS.values() for choice in key.choices),
]
TUPLES = [(), (1,), (0.5,), (0.1, 0.9), (0.9, 0.1), (1, 2, 3), (0.0, 0.0, 1.0), (1e-6, 1e-6)]
TUPLES += [(1e-3, 1e3), (math.nan,), (math.inf, 0.0), (None,), ("a",), ((1,),), (1e300,)]
TUPLES += [(5e-324, 0.5), (10**400,), tuple(range(1000)), tuple(range(10**6)), (True,)]
OTHERS = [None, b"x", 1j, {1}, [1, 2], {}, {"a": 1}, object, Ellipsis, np.float32(1), np.int64(2)]

OPTIONS = ["magnitude", "num_ops", "end_epoch", "start_epoch", "start_scale", "multiple", "a b"]

OF_TYPE = {
    bool: st.booleans(),
    int: st.sampled_from(INTEGERS) | st.integers(0, 200) | st.integers(),
    float: st.sampled_from(FLOATS) | st.floats(0, 10) | st.floats() | st.sampled_from(INTEGERS),
    str: st.sampled_from(TEXTS) | st.text(),
    tuple: st.sampled_from(TUPLES) | st.lists(st.floats(0, 100), max_size=4).map(tuple),
    dict: st.dictionaries(
        st.sampled_from(OPTIONS), st.sampled_from([*INTEGERS, *FLOATS, "x", None, (1, 2)])
    ),
}
ANYTHING = st.one_of(*OF_TYPE.values(), st.sampled_from(OTHERS))


def values(key: str) -> st.SearchStrategy[Any]:
    """Mostly of the key's own type, and known words where it takes those."""
    own = OF_TYPE[type(DEFAULTS[key])]
    if KEYS[key].choices:
        own = st.sampled_from(KEYS[key].choices) | own
    return st.one_of(own, own, own, ANYTHING)


def misspelt(key: str, at: int, letter: str) -> str:
    at %= len(key)
    return key[:at] + letter + key[at + 1 :]


KNOWN = st.sampled_from(sorted(DEFAULTS)).flatmap(lambda k: st.tuples(st.just(k), values(k)))
UNKNOWN = st.tuples(
    st.builds(
        misspelt, st.sampled_from(sorted(DEFAULTS)), st.integers(0, 99), st.sampled_from("xé")
    ),
    ANYTHING,
)
MUTATIONS = st.lists(st.one_of(*9 * [KNOWN], UNKNOWN), min_size=1, max_size=4)
BASES = {"default": default_config, "digits": digits.get_config}


def mutated(base: str, mutations: list[tuple[str, Any]]) -> ml_collections.ConfigDict:
    """The config with other values, as a config file could set them."""
    config = BASES[base]()
    if base == "default":
        config.update({"total_epochs": 90.0, "model": {"name": "cifar_resnet8"}})
    config.unlock()
    for key, value in mutations:
        *groups, leaf = key.split(".")
        part = config
        for group in groups:
            part = part.get(group, part) if isinstance(part, ml_collections.ConfigDict) else part
        if isinstance(part, ml_collections.ConfigDict):
            if leaf in part:  # whose type would be kept
                del part[leaf]
            part[leaf] = value
    return config


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Ends what takes far too long, or far too much memory, by an error."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_SECONDS)
    try:
        with memory_limited():
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        jax.config.update("jax_enable_x64", False)


@contextlib.contextmanager
def memory_limited() -> Iterator[None]:
    status = pathlib.Path("/proc/self/status")
    if not status.exists():  # only Linux counts what a process has written to
        yield
        return

    used = next(line for line in status.read_text().splitlines() if line.startswith("VmData"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(used.split()[1]) * 1024 + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def use(parts: Run) -> None:
    """What a run does with its parts before the first update, where that is little."""
    assert parameter_table(parts.plan)
    assert explain(parts.plan)
    parts.program.abstract_batch()
    json.dumps([parts.plan.identity(), run_keys(parts.plan.config)], allow_nan=False)
    for update in (0, parts.plan.learning_rate.warmup_updates, parts.plan.total_updates):
        rate = float(parts.plan.learning_rate.schedule(update))
        assert math.isfinite(rate)
        assert rate >= 0
    image = math.prod(parts.plan.image_shape)
    if image * parts.plan.config.batch_size > 10**6:
        return
    for update in (0, parts.plan.total_updates - 1):
        arrays = load_job(parts.feed.train_batches().job(update))
        assert all(np.isfinite(array).all() for array in arrays.values())
    if image * min(parts.feed.eval_batches().batch_size, len(parts.feed.splits.validation)) < 10**6:
        load_job(next(iter(parts.feed.eval_batches().jobs())))


def complaint(config: ml_collections.ConfigDict) -> str | None:
    """The line that the config ends in; None where it describes a run."""
    with limited():
        try:
            use(build(resolve(config)))
        except ConfigError as error:
            return str(error)
    return None


def check(base: str, mutations: list[tuple[str, Any]]) -> None:
    line = complaint(mutated(base, mutations))
    if line is not None:
        assert len(line.splitlines()) == 1, line
        assert len(line) < LONGEST
        assert any(word in line for word in WORDS), line


SETTINGS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=10, derandomize=True, **SETTINGS)
@given(st.sampled_from(sorted(BASES)), MUTATIONS)
def test_any_config_is_a_run_or_a_line(base, mutations):
    check(base, mutations)


@pytest.mark.long
@settings(max_examples=2000, **SETTINGS)
@given(st.sampled_from(sorted(BASES)), MUTATIONS)
def test_any_of_thousands_of_configs_is_a_run_or_a_line(base, mutations):
    check(base, mutations)


@settings(max_examples=12, derandomize=True, **SETTINGS)
@given(st.sampled_from(sorted(SOURCES)), st.sampled_from(TEXTS) | st.text())
def test_any_place_of_the_data_is_a_run_or_a_line(source, folder):
    check("digits", [("data.source", source), ("data.dir", folder), ("data.image_size", 8)])


# Changes, and a part of the line that they end in; None where they are fine.
LARGE = {
    "channels": ({"model.width": 1e9}, "model.width must be at most 1,000"),
    "parameters": (
        {"model.width": 1000.0, "model.name": "resnet152"},
        "parameters is larger than 100,000,000,000; lower model.width",
    ),
    "pixels": ({"data.image_size": 10**9}, "data.image_size must be at most 10,000"),
    "padding": ({"data.crop_padding": 10**4}, "crop_padding=10000 can leave nothing of images"),
    "epochs": ({"total_epochs": 1e300}, "total_epochs must be at most"),
    "updates": ({"total_epochs": 1e14}, "is longer than 100,000,000"),
    "evaluations": (
        {"total_epochs": 0.0, "total_steps": 10**8, "evaluation.every_epochs": 0.2},
        "evaluation.every_epochs=0.2 comes round more than 100,000 times; make it longer",
    ),
    "checkpoints": (
        {
            "total_epochs": 0.0,
            "total_steps": 10**8,
            "evaluation.every_epochs": 0.0,
            "checkpoint.every_epochs": 0.0,
            "checkpoint.every_steps": 1,
        },
        "checkpoint.every_steps=1 comes round more than 100,000 times; make it longer",
    ),
    "decays": (
        {"learning_rate.decay_epochs": tuple(map(float, range(10**6)))},
        "decay_epochs holds 1,000,000 numbers, more than 1,000",
    ),
    "a rate past float32": (
        {
            "learning_rate.decay_epochs": tuple(map(float, range(5, 1000))),
            "learning_rate.decay_factor": 1e6,
        },
        "learning_rate.decay_factor=1e+06 at 995 epochs makes a learning rate of more than 1e+38",
    ),
    "threads": ({"data.threads": 10**9}, "data.threads must be at most 1,000"),
    "examples": (
        {"data.source": "synthetic", "data.synthetic_examples": 10**18},
        "data.synthetic_examples must be at most",
    ),
    "classes": (
        {"data.source": "synthetic", "data.synthetic_classes": 10**9},
        "data.synthetic_classes must be at most 1,000,000",
    ),
    "a seed that JAX would cut": ({"seed": 2**32}, "seed must be at most 4,294,967,295"),
    "digits": ({"batch_size": 10**5000}, "batch_size must be at most 1,000,000,000, not a number"),
    "text": ({"data.dir": "x" * 10**6}, "data.dir has 1,000,000 characters"),
    "group of workers": (
        {
            "batch_size": 10**9,
            "worker_batch_size": 1,
            "total_epochs": 0.0,
            "total_steps": 5,
            "learning_rate.warmup": "none",
            "learning_rate.decay": "none",
            "evaluation.every_epochs": 0.0,
            "checkpoint.every_epochs": 0.0,
            "batch_norm.synced_workers": 10**9,
        },
        None,
    ),
    "examples that are never in memory": (
        {
            "data.source": "synthetic",
            "data.synthetic_examples": 10**15,
            "data.image_size": 8,
            "total_epochs": 0.0,
            "total_steps": 5,
            "evaluation.every_epochs": 0.0,
            "checkpoint.every_epochs": 0.0,
            "learning_rate.warmup": "none",
        },
        None,
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_is_far_too_large_ends_at_once(name):
    changes, says = LARGE[name]
    line = complaint(mutated("digits", list(changes.items())))
    assert (line is None) == (says is None), line
    assert says is None or says in line


@pytest.mark.parametrize("most_lanes", [1, 2, 3, 17, 100, 1000])
def test_each_number_of_lanes_is_a_candidate_once(most_lanes):
    """As trying all numbers of steps finds them, which for a billion workers never ends."""
    wanted = sorted({-(-most_lanes // steps) for steps in range(1, most_lanes + 1)}, reverse=True)
    steps = {
        lanes: min(s for s in range(1, 1001) if -(-most_lanes // s) == lanes) for lanes in wanted
    }

    def place(number: int) -> Any:
        return ml_collections.ConfigDict({"lanes": -(-most_lanes // number), "steps": number})

    found = [(p.lanes, p.steps) for p in fit.candidates(place, most_lanes)]
    assert found == [(lanes, steps[lanes]) for lanes in wanted]


def test_candidates_of_a_billion_workers_end():
    def place(steps: int) -> Any:
        return ml_collections.ConfigDict({"lanes": -(-(10**9) // steps)})

    with limited():
        assert sum(1 for _ in fit.candidates(place, 10**9)) < 2 * math.isqrt(10**9) + 2
