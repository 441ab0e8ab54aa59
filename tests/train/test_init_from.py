"""Runs that start from weights: resume counts before them, and they before what is drawn."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from hanging import HANG_SECONDS
from safetensors.numpy import save_file
from tiny_run import UPDATES, final_state, tiny_config

import lbsgd
from lbsgd import main, train
from lbsgd.checkpoint import store
from lbsgd.experiments.together import run_together
from lbsgd.run.build import build, plan_run
from lbsgd.run.explain import explain
from lbsgd.system.errors import EXIT_USER, ConfigError
from lbsgd.weights.initial import read_weights

ROOT = pathlib.Path(__file__).parents[2]
CLASSES = 7  # of the file's head; digits are ten
HEAD = ("params/classifier/kernel", "params/classifier/bias")


def named(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def weights(seed=0, classes=10) -> dict[str, np.ndarray]:
    """Arrays of the tiny run's network, nothing at 0 or 1."""
    random = np.random.default_rng(seed)
    arrays = {
        name: random.uniform(0.1, 0.9, leaf.shape).astype(np.float32)
        for name, leaf in plan_run(tiny_config()).variables().shapes.items()
    }
    for name in HEAD:
        arrays[name] = arrays[name][..., :classes].copy()
    return arrays


def config_from(path, **keys):
    return tiny_config(init_from=str(path), **{"total_steps": 6, **keys})


def initial(config) -> dict[str, np.ndarray]:
    state = build(config).program.start()
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    return named(state)


def test_the_initial_state_is_made_of_the_weights_on_any_devices(tmp_path):
    """Parameters, statistics and their averages; the head for other classes is that of the seed."""
    arrays = weights(classes=CLASSES)
    save_file(arrays, tmp_path / "a")
    drawn = initial(tiny_config(seed=5))
    states = [
        initial(config_from(tmp_path / "a", seed=5, devices=devices, **{"ema.decay": 0.9}))
        for devices in (2, 4)
    ]
    for name, value in arrays.items():
        expected = drawn[name] if name in HEAD else value
        for state in states:
            assert state[name].tobytes() == expected.tobytes() == state[f"ema/{name}"].tobytes()
    assert states[0].keys() == states[1].keys() == drawn.keys() | {f"ema/{n}" for n in arrays}
    momenta = [name for name in drawn if name.startswith("opt_state") and "buffer" in name]
    assert momenta
    assert not any(states[0][name].any() for name in momenta)


def stopped(config, workdir, after=3):
    return train.run(config, workdir, should_stop=lambda done: done >= after, shown=False)


@pytest.mark.long
def test_a_run_resumes_with_the_file_moved_or_gone_and_not_with_another(tmp_path):
    save_file(weights(), tmp_path / "a")
    config, workdir = config_from(tmp_path / "a"), tmp_path / "run"
    assert train.run(config, tmp_path / "whole", shown=False).complete
    assert not stopped(config, workdir).complete
    other = tmp_path / "other"
    save_file(weights(seed=1), other)
    for wrong in (config_from(other), tiny_config(total_steps=6)):
        with pytest.raises(ConfigError, match="differs in the initial weights"):
            train.run(wrong, workdir)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert not stopped(config_from(tmp_path / "moved"), workdir, after=4).complete
    assert train.run(config, workdir, shown=False).complete  # there is no "a" any more
    log = (workdir / "logs" / "0.log").read_text()
    assert "resumes after update 4" in log
    assert "is not there any more; the run began with" in log
    found, expected = (
        final_state(config_from(tmp_path / "moved"), p) for p in (workdir, tmp_path / "whole")
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name
    lines = (workdir / "initial_weights.txt").read_text().splitlines()
    assert sum(line.startswith("taken") for line in lines) == len(weights())
    loaded = named(lbsgd.load(workdir).variables)  # needs the weights of before as little
    assert loaded.keys() == weights().keys()
    for name, value in loaded.items():
        group, *path = name.split("/")
        stored = expected[f".{group}" + "".join(f"[{part!r}]" for part in path)]
        assert value.tobytes() == stored.tobytes(), name


def test_a_run_without_a_checkpoint_needs_the_file(tmp_path):
    save_file(weights(), tmp_path / "a")
    config, workdir = config_from(tmp_path / "a"), tmp_path / "run"
    stopped(config, workdir)
    shutil.rmtree(workdir / "checkpoints")
    (tmp_path / "a").unlink()
    with pytest.raises(ConfigError, match=r"'.*/a' is not there any more"):
        train.run(config, workdir, shown=False)
    shutil.rmtree(workdir)
    with pytest.raises(ConfigError, match=r"there is no '.*/a'"):
        train.run(config, workdir, shown=False)


def checkpoint(workdir, update) -> dict[str, np.ndarray]:
    path = workdir / "checkpoints" / str(update)
    return store.read_arrays(path, store.read_manifest(path))


def test_another_run_gives_its_newest_checkpoint_or_the_one_that_is_named(whole_run, tmp_path):
    """Bit by bit; the seed stands in the path, so that each may start from its own run."""
    (tmp_path / "of_7").symlink_to(whole_run)
    for path, update in (
        (tmp_path / "of_{seed}", UPDATES),
        (whole_run / "checkpoints", UPDATES),
        (whole_run / "checkpoints" / "8", 8),
    ):
        there, found = checkpoint(whole_run, update), initial(config_from(path, seed=7))
        for name in weights():
            assert found[name].tobytes() == there[name].tobytes(), name
        assert found["update_index"] == 0
    with pytest.raises(ConfigError, match=r"without ema\.decay"):
        build(config_from(whole_run, init_ema=True))


def test_a_head_is_kept_for_the_same_classes_in_the_same_order(tmp_path):
    """Be it as large for others."""
    arrays, config = weights(), config_from(tmp_path / "a")
    save_file(arrays, tmp_path / "a", metadata={"classes": json.dumps(list("0123456789"))})
    variables = plan_run(tiny_config()).variables()
    for classes, what in (
        ("0123456789", "taken"),
        ("9876543210", "head replaced"),
        ("01234", "head replaced"),
        ("", "taken"),  # nobody knows them
    ):
        here = variables._replace(classes=tuple(classes))
        found, taken = read_weights(config, here, lambda: "")
        assert {row.what for row in found.rows if row.here in HEAD} == {what}
        assert {row.what for row in found.rows if row.here not in HEAD} == {"taken"}
        assert taken.keys() == (arrays.keys() if what == "taken" else arrays.keys() - {*HEAD})


def test_a_run_of_another_width_is_told_apart_by_its_config(whole_run):
    with pytest.raises(
        ConfigError, match=r"model\.width=0\.25, .*: set --config\.model\.width=0\.25$"
    ):
        plan_run(config_from(whole_run, **{"model.width": 0.5}))


@pytest.mark.long
@pytest.mark.parametrize("there", ["a run", "safetensors"])
def test_a_head_of_other_classes_is_replaced_though_it_would_fit(there, whole_run, tmp_path):
    source, other = whole_run, {"data.only_classes": ("0-4",), "model.num_classes": 10}
    if there == "safetensors":
        source = tmp_path / "a"
        save_file(weights(), source, metadata={"classes": json.dumps(list("0123456789"))})
    for keys, expected in (({}, set()), (other, {"head replaced"})):
        plan = build(tiny_config(init_from=str(source), **keys)).plan
        assert {row.what for row in plan.weights.rows} - {"taken"} == expected


@pytest.mark.long
def test_the_averaged_weights_of_a_run_are_taken_where_they_are_asked_for(tmp_path):
    train.run(tiny_config(total_steps=4, **{"ema.decay": 0.9}), tmp_path / "run", shown=False)
    there = checkpoint(tmp_path / "run", 4)
    found = initial(config_from(tmp_path / "run", init_ema=True))
    for name in weights():
        assert found[name].tobytes() == there[f"ema/{name}"].tobytes()
    assert any(there[f"ema/{name}"].tobytes() != there[name].tobytes() for name in weights())


def test_a_damaged_checkpoint_is_named(whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / str(UPDATES) / "state"
    largest = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    with pytest.raises(ConfigError, match=f"has the damaged checkpoint {UPDATES}") as raised:
        build(config_from(tmp_path / "run"))
    assert "\n" not in str(raised.value)


BROKEN = {
    "not a number": (np.nan, "stage1_block1/conv1/conv/kernel"),
    "infinite": (np.inf, "stem_norm/mean"),
    "a variance below 0": (-1.0, "stem_norm/var"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_values_that_no_network_has_are_a_mistake(what, tmp_path):
    value, at = BROKEN[what]
    arrays = weights()
    (name,) = (name for name in arrays if name.endswith(at))
    arrays[name].reshape(-1)[0] = value
    save_file(arrays, tmp_path / "a")
    with pytest.raises(ConfigError, match=f"'.*/a' holds .*'{name}'"):
        build(config_from(tmp_path / "a"))
    # Who only explains a run reads no values.
    assert any(
        "37 of the network's 37 arrays" in x for x in explain(plan_run(config_from(tmp_path / "a")))
    )


def test_a_run_is_explained_without_its_weights_at_hand(tmp_path):
    lines = explain(plan_run(config_from(tmp_path / "a")))
    assert f"initial weights: '{tmp_path}/a' is not here, and no run begins without it" in lines
    lines = explain(plan_run(config_from("memory://bucket/a")))
    assert "initial weights: 'memory://bucket/a' is read when the run starts" in lines


def test_arrays_of_half_the_precision_are_widened_exactly(tmp_path):
    arrays = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights().items()}
    save_file(arrays, tmp_path / "a")
    found = initial(config_from(tmp_path / "a"))
    for name, value in arrays.items():
        assert found[name].tobytes() == value.astype(np.float32).tobytes()


class Payload:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_planted_payload_ends_the_command_with_exit_code_2(tmp_path, capfd):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Payload(tmp_path / "made")))
    words = [f"--config={ROOT}/configs/digits.py", f"--workdir={tmp_path}/run"]
    code = main.train([*words, "--num_processes=1", f"--config.init_from={tmp_path}/weights.pth"])
    assert code == EXIT_USER
    assert "without executing" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_seeds_at_once_start_alike_but_for_their_heads_and_train_as_they_would_alone(tmp_path):
    save_file(weights(classes=CLASSES), tmp_path / "a")
    configs = [config_from(tmp_path / "a", seed=seed, dtype="float64") for seed in (1, 2)]
    folders = [tmp_path / "1", tmp_path / "2"]
    assert all(outcome.complete for outcome in run_together(configs, folders))
    for config, folder in zip(configs, folders):
        train.run(config, tmp_path / "alone", shown=False)
        found, expected = checkpoint(folder, 6), checkpoint(tmp_path / "alone", 6)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
        shutil.rmtree(tmp_path / "alone")
    heads = [initial(config)[HEAD[0]] for config in configs]
    assert not np.array_equal(*heads)


@pytest.mark.long
def test_a_training_from_weights_is_the_same_on_any_devices(tmp_path):
    save_file(weights(classes=CLASSES), tmp_path / "a")
    ends = []
    for devices in (1, 3, 4):
        workdir = tmp_path / str(devices)
        train.run(config_from(tmp_path / "a", dtype="float64", devices=devices), workdir)
        ends.append(checkpoint(workdir, 6))
    for end in ends[1:]:
        for name, value in ends[0].items():
            np.testing.assert_allclose(end[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.long
def test_process_0_reads_the_weights_and_sends_them_to_the_others(tmp_path):
    """Of two processes, as bits; the second sees another folder, where there are none."""
    arrays = weights(classes=CLASSES)
    save_file(arrays, tmp_path / "a")
    train.run(config_from(tmp_path / "a"), tmp_path / "alone", shown=False)
    there = tmp_path / "two"
    launched = [sys.executable, "-m", "lbsgd.main", "launch", "--num_processes=2", "--platform=cpu"]
    launched += ["--max_restarts=0", "--", f"--config={tmp_path}/config.py", f"--workdir={there}"]
    (tmp_path / "config.py").write_text(
        CONFIG.format(path=str(tmp_path / "a"), tests=str(ROOT / "tests"))
    )
    done = subprocess.run(launched, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    for name, value in checkpoint(tmp_path / "alone", 6).items():
        np.testing.assert_allclose(
            checkpoint(there, 6)[name], value, rtol=1e-4, atol=1e-4, err_msg=name
        )
    texts = [
        json.loads((w / "config.json").read_text())["run"] for w in (there, tmp_path / "alone")
    ]
    assert texts[0]["the initial weights"] == texts[1]["the initial weights"]


CONFIG = """
import sys

sys.path.insert(0, {tests!r})
from ml_collections import ConfigDict
from tiny_run import tiny_config


def get_config(arg=""):
    return ConfigDict(tiny_config(init_from={path!r}, total_steps=6))
"""
