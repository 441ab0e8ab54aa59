"""Runs that are trained at once are each the run it would be alone."""

import hashlib
import json
import pathlib
import pydoc
import shutil
import signal
import subprocess
import sys

import fragile
import jax
import numpy as np
import pytest
from tiny_run import UPDATES, final_state, tiny_config

from lbsgd import train
from lbsgd.experiments import group, joint
from lbsgd.experiments.together import choose_together, run_together
from lbsgd.run.build import build
from lbsgd.run.updates import OwnUpdates
from lbsgd.system.errors import ConfigError, DivergedError

SEEDS = (3, 1, 2**32 - 1)
FRAGILE = {"model.name": f"{fragile.__name__}:Fragile", "model.width": 1.0, "dtype": "float64"}
TIMES = {"images_per_second", "data_wait_percent"}


def configs_of(seeds=SEEDS, **keys):
    return [tiny_config(**FRAGILE | keys, seed=seed) for seed in seeds]


def folders(path):
    return [path / str(i) for i in range(len(SEEDS))]


def metrics(workdir):
    """All lines but the times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_alike(config, workdir, alone, atol=1e-9):
    """The checkpoint at the end, and every number of the metrics, to rounding."""
    found, expected = final_state(config, workdir), final_state(config, alone)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype), name
        np.testing.assert_allclose(found[name], x, rtol=1e-9, atol=atol, err_msg=name)
    lines, others = metrics(workdir), metrics(alone)
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    for line, other in zip(lines, others):
        for name, value in other.items():
            # None, which is nan here, is a noise scale that cannot be told yet.
            x, y = np.array([line[name], value], np.float64)
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=atol, err_msg=name)


@pytest.fixture
def batches(monkeypatch):
    """What each update of each seed was given, as digests by its index."""
    seen = {}

    def noted(updates, plan_of):
        def update(self, index, batch):
            images = hashlib.sha256(np.asarray(batch["image"]).tobytes()).hexdigest()
            seen.setdefault(plan_of(self).config.seed, {})[index] = images
            return updates(self, index, batch)

        return update

    for kind, plan_of in (
        (OwnUpdates, lambda own: own._numbers._plan),
        (group.Member, lambda member: member.program.plan),
    ):
        monkeypatch.setattr(kind, "__call__", noted(kind.__call__, plan_of))
    return seen


def seeds_by_luck(config, count=30):
    """Seeds whose first number is positive, whose runs break, and the others."""
    seeds = np.arange(2**32 - count, 2**32, dtype=np.uint32)
    with jax.enable_x64(True):
        states = jax.jit(jax.vmap(build(config).plan.initial_state))(seeds)
        luck = np.asarray(states.params["luck"])[:, 0]
    return seeds[luck > 0].tolist(), seeds[luck <= 0].tolist()


def test_each_is_the_run_that_it_is_alone_also_beside_one_that_diverges(tmp_path, batches):
    """State, metrics, evaluations, and bitwise the examples in their order."""
    keys = {"model.options.breaks": True, "evaluation.every_steps": 7, "checkpoint.every_steps": 0}
    bad, good = seeds_by_luck(configs_of((0,), **keys)[0])
    configs, said = configs_of((good[0], bad[0], good[1]), **keys), []
    outcomes = run_together(
        configs, folders(tmp_path), on_metrics=lambda i, done, values: said.append((i, done))
    )
    assert outcomes[0].complete, outcomes
    together = {seed: batches[seed] for seed in (good[0], good[1])}
    batches.clear()
    for i in (0, 2):
        alone = train.run(configs[i], tmp_path / f"{i}.alone", shown=False)
        assert outcomes[i] == alone
        assert_alike(configs[i], tmp_path / str(i), tmp_path / f"{i}.alone")
        assert said.count((i, UPDATES)) == 2  # its last update, and the evaluation
    assert together == batches
    assert {len(order) for order in batches.values()} == {UPDATES}
    assert isinstance(outcomes[1], DivergedError)
    assert "the loss of update 1 is not finite" in str(outcomes[1])
    assert json.loads((tmp_path / "1" / "result.json").read_text())["diverged"]


def test_runs_that_cannot_be_together_are_a_line(tmp_path):
    ours = folders(tmp_path)
    cases = [
        (configs_of(), [ours[0]] * 3, "need a workdir each"),
        (
            [*configs_of((1, 2)), *configs_of((3,), batch_size=128)],
            ours,
            "batch_size is 64 and 128",
        ),
        (configs_of(**{"log.sinks": ("wandb",)}), ours, "take 'wandb' out of log.sinks"),
    ]
    for configs, workdirs, says in cases:
        with pytest.raises(ConfigError, match=says):
            run_together(configs, workdirs)
    assert list(tmp_path.iterdir()) == []


# Forms of the step, and what is due while it trains; with the longest of them, 50 updates.
LONG = {"total_steps": 50, "evaluation.every_steps": 20, "checkpoint.every_steps": 20}
FORMS = [
    {"devices": 1, "accumulation_steps": 1},
    {"devices": 1, "accumulation_steps": 2, "ema.decay": 0.9},
    {"devices": 2, "accumulation_steps": 1, "batch_norm.synced_workers": 4},
    {"devices": 2, "accumulation_steps": 2, "batch_norm.precise_examples": 64},
    {"optimizer.name": "lars", "optimizer.trust_coefficient": 0.01, "label_smoothing": 0.1},
    {"batch_growth.sizes": (128,), "batch_growth.at_steps": (20,), "data.mixup": 0.2},
    {"devices": 2, "accumulation_steps": 2, "data.running_mixup": 0.4},
    {
        "diagnostics.workers.every_steps": 20,
        "diagnostics.confusion.every_steps": 30,
        "diagnostics.confusion.pairs": 4,
        "diagnostics.layers.every_steps": 25,
    },
]


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form))
def test_over_fifty_updates_in_every_form_of_the_step(tmp_path, form):
    configs = configs_of(**LONG | form)
    for outcome in run_together(configs, folders(tmp_path)):
        assert outcome.complete
    train.run(configs[2], tmp_path / "alone", shown=False)
    assert_alike(configs[2], tmp_path / "2", tmp_path / "alone")


@pytest.mark.long
def test_residual_networks_too(tmp_path):
    keys = {"model.name": "cifar_resnet8", "model.width": 0.25, "dtype": "float64"}
    configs = [tiny_config(**keys, seed=seed) for seed in SEEDS]
    run_together(configs, folders(tmp_path))
    train.run(configs[1], tmp_path / "alone", shown=False)
    assert_alike(configs[1], tmp_path / "1", tmp_path / "alone")


@pytest.mark.long
def test_those_behind_are_first_brought_level(tmp_path, batches):
    """All stop after the same update; then they have come to 4, 8, 12 and nowhere."""
    seeds = (*SEEDS, 7)
    configs, workdirs = configs_of(seeds), [tmp_path / str(i) for i in range(4)]
    calls = []
    stopped = run_together(
        configs[:3],
        workdirs[:3],
        # Of a clock, as a signal is: who asks later hears something else.
        should_stop=lambda done: calls.append(done) or len(calls) > 4,
    )
    assert [outcome.updates for outcome in stopped] == [4] * 3
    assert calls == [0, 1, 2, 3, 4]
    train.run(configs[1], workdirs[1], should_stop=lambda done: done == 8, shown=False)
    train.run(configs[2], workdirs[2], shown=False)
    batches.clear()
    outcomes = run_together(configs, workdirs)
    assert [outcome.updates for outcome in outcomes] == [UPDATES] * 4
    made = {seed: list(order) for seed, order in batches.items()}
    assert made == {
        seeds[0]: [*range(4, UPDATES)],
        seeds[1]: [*range(8, UPDATES)],
        7: [*range(UPDATES)],
    }
    batches.clear()
    for i in (0, 1, 3):
        train.run(configs[i], tmp_path / f"{i}.alone", shown=False)
        assert_alike(configs[i], workdirs[i], tmp_path / f"{i}.alone")
    # All are complete now, and none trains.
    batches.clear()
    assert run_together(configs, workdirs) == outcomes
    assert not batches


KILLED = """
import os, pathlib, signal, sys, time
sys.path[:0] = sys.argv[2:]
import jax
jax.config.update("jax_num_cpu_devices", 8)
import test_together
from lbsgd.experiments.together import run_together

def killed(i, done, values):
    if (i, done) == (1, 9):
        # Checkpoints are written beside the training, and all began to be before update 9.
        while not all((folder / "checkpoints" / "8").is_dir() for folder in folders):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

path = pathlib.Path(sys.argv[1])
folders = test_together.folders(path)
run_together(test_together.configs_of(), folders, on_metrics=killed)
"""


@pytest.mark.long
def test_a_process_that_is_killed_changes_nothing(tmp_path):
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", KILLED, tmp_path, here, here.parent, here.parents[1]]
    killed = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    configs, workdirs = configs_of(), folders(tmp_path)
    # One lost a checkpoint besides.
    # The next one may have been half written.
    names = [path.name for path in (workdirs[0] / "checkpoints").iterdir()]
    newest = max(int(name) for name in names if name.isdecimal())
    assert newest == 8
    shutil.rmtree(workdirs[0] / "checkpoints" / "8")
    assert all(outcome.complete for outcome in run_together(configs, workdirs))
    for config, workdir in zip(configs, workdirs):
        train.run(config, workdir.with_suffix(".alone"), shown=False)
        assert_alike(config, workdir, workdir.with_suffix(".alone"))


def raises_for(seed, function, after=0):
    """The function, but an error once it was called that often with what belongs to a seed."""
    calls = []

    def wrapped(self, *args, **keys):
        plan = getattr(self, "plan", None) or getattr(self, "_plan", None)
        if plan is None or plan.config.seed == seed:
            calls.append(args)
            if len(calls) > after:
                raise OSError("as a disk that is gone")
        return function(self, *args, **keys)

    return wrapped


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "after"),
    [
        ("lbsgd.run.program.Program.start", 0),
        ("lbsgd.run.feed.Feed.training", 0),
        ("lbsgd.run.evaluation.Evaluation.__call__", 0),
        ("lbsgd.run.record.monitor.Monitor.update", 3),
        ("lbsgd.run.record.monitor.Monitor.drain", 1),
        ("lbsgd.run.record.record.Record.save", 1),
        ("lbsgd.run.record.record.Record.finish", 0),
        ("lbsgd.run.record.record.Record.summary", 0),
    ],
)
def test_one_that_fails_anywhere_is_waited_for_by_nobody(tmp_path, monkeypatch, where, after):
    owner, _, name = where.rpartition(".")
    kind = pydoc.locate(owner)
    monkeypatch.setattr(kind, name, raises_for(SEEDS[0], getattr(kind, name), after))
    failed, *others = run_together(configs_of(), folders(tmp_path))
    assert isinstance(failed, OSError)
    assert [outcome.complete for outcome in others] == [True, True]


@pytest.mark.long
def test_a_step_that_fails_ends_all(tmp_path, monkeypatch):
    def fails(self, *args):
        raise MemoryError

    monkeypatch.setattr(joint.JointProgram, "stack", fails)
    for outcome in run_together(configs_of(), folders(tmp_path)):
        assert isinstance(outcome, ConfigError)
        assert "set seeds_at_once to less than 3" in str(outcome)


@pytest.mark.long
def test_more_than_fit_are_a_line_that_says_how_many_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program = build(configs_of()[0]).program
    needed = joint.JointProgram(program, 3).needed_memory(
        joint.JointProgram(program, 3).compile_train_step(), program.plan.placement
    )
    memory = {"accumulation_steps": 0, "device_memory_gib": (needed - 1) / 2**30}
    for outcome in run_together(configs_of(**memory), folders(tmp_path)):
        assert isinstance(outcome, ConfigError)
        assert "3 runs at once need" in str(outcome)
        assert str(outcome).endswith("set seeds_at_once to 2 at most")


@pytest.mark.long
def test_how_many_at_once_is_chosen_by_what_an_update_takes():
    said = []
    chosen = choose_together(configs_of()[0], 3, said.append)
    assert chosen in (1, 3)
    (line,) = said
    assert line.startswith(f"seeds_at_once={chosen}: an update takes ")
    assert "of each of 3 at once" in line
    assert choose_together(configs_of()[0], 1, said.append) == 1
    assert len(said) == 1
