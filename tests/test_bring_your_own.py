"""What docs/bring_your_own.md promises: files of one's own, named in a config, train on digits."""

import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from tiny_run import final_state, tiny_config

from lbsgd import train
from lbsgd.checkpoint.identity import identity_differences
from lbsgd.run.build import build
from lbsgd.run.explain import explain
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "bring_your_own.md").read_text()
FILES = dict(re.findall(r"`(\w+)\.py`:\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL))

NETS = '''
"""Networks of stock Flax layers."""
import flax.linen as nn

class GroupNet(nn.Module):
    num_classes: int
    width: int = 8
    rate: float = 0.3

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (3, 3), strides=2)(x)
        x = nn.relu(nn.GroupNorm(num_groups=4)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(x)

class BatchNet(nn.Module):
    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x, use_running_average):
        x = nn.Conv(self.width, (3, 3), strides=2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average, momentum=0.9)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
'''
OTHERS = '''
"""An augmentation, and a sink."""
from lbsgd.data.order import random_below

def shift(seed, most=1):
    def augment(images, epochs, examples):
        by = random_below(2 * most + 1, seed, "shift", epochs, examples) - most
        for image, pixels in zip(images, by.tolist()):
            image[:] = __import__("numpy").roll(image, pixels, axis=1)
        return images
    return augment

def lines(folder, name="lines.txt"):
    file = open(folder / name, "a")
    def write(step, values):
        print(step, *sorted(values), file=file, flush=True)
    write.close = file.close
    return write
'''


@pytest.fixture(autouse=True)
def promotion():
    """As users have it: Flax's own layers mix types and ranks, which tests else refuse."""
    usual = {"jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}
    before = {key: getattr(jax.config, key) for key in usual}
    for key, value in usual.items():
        jax.config.update(key, value)
    yield
    for key, value in before.items():
        jax.config.update(key, value)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A current folder with the files of the page and those above; they are forgotten after."""
    texts = {**FILES, "nets_of_mine": NETS, "others_of_mine": OTHERS}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in texts:
        sys.modules.pop(name, None)


def test_the_files_of_the_page_are_short():
    assert set(FILES) == {"focal", "two_heads", "signed"}
    assert all(text.count("\n") < 30 for text in FILES.values())


# Everything of one's own at once, but the task. (Not lion: it takes signs, also of what is 0 but
# for rounding.)
ALL = {
    "dtype": "float64",
    "model.name": "nets_of_mine:GroupNet",
    "model.options": {"width": 4},
    "task.loss": "focal:focal",
    "task.loss_options": {"gamma": 1.5},
    "optimizer.name": "optax:adamw",
    "learning_rate.reference_learning_rate": 1e-3,
    "data.augment": "others_of_mine:shift",
    "data.augment_options": {"most": 2},
    "log.sinks": ("others_of_mine:lines",),
    "log.sink_options": {"lines": {"name": "mine.txt"}},
    "ema.decay": 0.9,
    "batch_size": 80,
}


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.long
def test_all_of_it_trains_and_resumes_on_other_devices_as_if_it_had_not_stopped(own, capsys):
    whole = tiny_config(**ALL, devices=1)
    outcome = train.run(whole, own / "whole")
    assert outcome.complete
    # Stopped in between, and resumed on five devices.
    stopped = train.run(whole, own / "other", should_stop=lambda done: done >= 7)
    assert not stopped.complete
    elsewhere = tiny_config(**ALL, devices=5)
    train.run(elsewhere, own / "other")
    assert "resumes after update" in capsys.readouterr().out
    same(final_state(elsewhere, own / "other"), final_state(whole, own / "whole"))
    # The sink had each line, and the averaged weights are evaluated.
    said = (own / "whole" / "mine.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in said][-1] == 12
    last = json.loads((own / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"val_loss", "val_error", "val_loss_ema", "val_error_ema"} <= last.keys()


TWO_HEADS = {
    "dtype": "float64",
    "batch_size": 80,
    "model.name": "two_heads:TwoHeads",
    "task.name": "two_heads:digit_and_parity",
    "task.options": {"weight": 0.2},
    "data.augment": "others_of_mine:shift",
    "log.sinks": ("others_of_mine:lines",),
}


def test_a_task_with_two_outputs_is_judged_by_its_own_metric(own, capsys):
    told = []
    outcome = train.run(
        tiny_config(**TWO_HEADS, devices=1),
        own / "run",
        on_metrics=lambda step, values: told.append((step, *sorted(values))),
    )
    lines = [json.loads(line) for line in (own / "run" / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "train_loss" in line]
    assert all("train_odd_loss" in line and "train_error" not in line for line in updates)
    evaluated = [line for line in lines if "val_loss" in line]
    assert set(evaluated[0]) == {"step", "epoch", "val_loss", "val_odd_loss", "val_accuracy"}
    result = json.loads((own / "run" / "result.json").read_text())
    median = float(np.median([line["val_accuracy"] for line in evaluated]))
    assert (result["headline"], result["final"]) == ("val_accuracy", median)
    assert outcome.final == median
    out = capsys.readouterr().out
    assert f"validation accuracy {median:.2f}%" in out
    assert "judged by validation accuracy, which is to rise" in out
    # The sink had each line, and so had the function.
    said = (own / "run" / "lines.txt").read_text().splitlines()
    assert said == [" ".join(map(str, line)) for line in told]
    assert told == [(line["step"], *sorted(line.keys() - {"step"})) for line in lines]


def test_what_is_named_belongs_to_the_run(own):
    config = tiny_config(**TWO_HEADS, devices=1)
    plan = build(config).plan
    said = "\n".join(explain(plan))
    for key in ("model.name", "task.name", "data.augment", "log.sinks"):
        assert f"code: {key}=" in said
    before = plan.identity()
    # What receives the metrics decides none of them.
    assert not any("lines" in key for key in before)
    (own / "two_heads.py").write_text(FILES["two_heads"] + "# changed\n")
    sys.modules.pop("two_heads")
    after = build(config).plan.identity()
    assert {key for key in after if after[key] != before[key]} == {"code"}
    changed = {name for name in after["code"] if after["code"][name] != before["code"][name]}
    assert changed == {"two_heads:TwoHeads", "two_heads:digit_and_parity"}
    differ = identity_differences(before, after)
    assert re.match(r"code\.two_heads:TwoHeads \(\w{12} there, \w{12} here\), code\.two_h", differ)
    # Who knows what he does says so.
    anyhow = tiny_config(**TWO_HEADS, devices=1, code_may_differ=True)
    assert identity_differences(before, build(anyhow).plan.identity()) == ""


@pytest.mark.long
@pytest.mark.parametrize(
    "keys",
    [
        {"model.name": "nets_of_mine:GroupNet"},
        {"model.name": "nets_of_mine:BatchNet"},
        {"task.loss": "focal:focal"},
        {"optimizer.name": "signed:signum", "optimizer.options": {"momentum": 0.5}},
        {"data.augment": "others_of_mine:shift"},
        TWO_HEADS,
    ],
    ids=lambda keys: keys.get("model.name") or next(iter(keys.values())),
)
def test_each_alone_trains_alike_on_one_device_and_five(keys, own):
    alike = {"dtype": "float64", "batch_size": 80, **keys}
    states = []
    for devices in (1, 5):
        config = tiny_config(**alike, devices=devices)
        train.run(config, own / f"run{devices}")
        states.append(final_state(config, own / f"run{devices}"))
    same(*states)


@pytest.mark.long
def test_stock_batch_norm_reaches_what_ours_reaches(own):
    """The very same weights and averages: the mean over workers of 0.9 r + 0.1 b_j is ours."""
    theirs = "nn.BatchNorm(use_running_average, momentum=0.9)(x)"
    ours = "BatchNorm(dtype=x.dtype, param_dtype=x.dtype)(x, train=not use_running_average)"
    text = NETS.replace(theirs, ours).replace(
        "import flax.linen as nn\n",
        "import flax.linen as nn\nfrom lbsgd.models.normalization import BatchNorm\n",
    )
    assert ours in text
    (own / "nets_of_lbsgd.py").write_text(text)
    states = []
    for name in ("nets_of_mine", "nets_of_lbsgd"):
        config = tiny_config(**{"model.name": f"{name}:BatchNet", "dtype": "float64"}, devices=2)
        train.run(config, own / name)
        states.append(final_state(config, own / name))
    sys.modules.pop("nets_of_lbsgd")
    same({key.replace("offset", "bias"): x for key, x in states[1].items()}, states[0])
    assert any("BatchNorm_0']['var" in key for key in states[0])


BAD = '''
"""Mistakes."""
import flax.linen as nn
import jax.numpy as jnp
from lbsgd.tasks import Metric, Task

class Broken(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1)).nothing

class Narrow(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(7)(x.reshape(len(x), -1))

def one_number(logits, labels):
    return logits.mean()

def needs(logits, labels, alpha):
    return alpha * logits[:, 0]

def no_task(classes):
    return 3

def task(classes, kind):
    def loss(outputs, batch):
        if kind == "raises":
            raise RuntimeError("no loss")
        value = outputs.mean(axis=-1) if kind == "vector" else outputs.mean()
        return value, {"extra": value} if kind == "undeclared" else {}

    def evaluate(outputs, batch):
        values = jnp.mean(outputs, axis=None if kind == "whole" else -1)
        if kind == "column":  # the slip of [n, 1] - [n]
            values = (outputs[:, :1] - batch["y"].astype(outputs.dtype)) ** 2
        return {"los" if kind == "names" else "loss": values}

    def targets(labels):
        if kind == "targets":
            return labels
        return {"y": labels[:5] if kind == "short" else labels}

    headline = "best" if kind == "headline" else "loss"
    return Task(loss, evaluate, {}, {"loss": Metric()}, headline, targets=targets)

def optimizer(learning_rate, decay):
    return learning_rate
'''
TASK = "task.name='bad_of_mine:task'"
MISTAKES = {
    "model raises": ({"model.name": "bad_of_mine:Broken"}, ".py, line 10: AttributeError: "),
    "outputs": ({"model.name": "bad_of_mine:Narrow"}, "line 12) gives outputs of shape (1, 7) for"),
    "loss": ({"task.loss": "bad_of_mine:one_number"}, "line 17) gives an array of shape () for 13"),
    "missing": ({"task.loss": "bad_of_mine:needs"}, "needs 'alpha'; set task.loss_options.alpha"),
    "unknown": (
        {"task.loss": "bad_of_mine:needs", "task.loss_options": {"alhpa": 1}},
        "has no option 'alhpa'; the nearest that it has is 'alpha'",
    ),
    "given": (
        {"task.loss": "bad_of_mine:needs", "task.loss_options": {"labels": 1}},
        "is given 'labels'; it is no option",
    ),
    "no task": ({"task.name": "bad_of_mine:no_task"}, "must give a lbsgd.tasks.Task, not int"),
    "no optimizer": (
        {"optimizer.name": "bad_of_mine:optimizer"},
        "needs 'decay'; set optimizer.op",
    ),
    **{
        kind: ({"task.name": "bad_of_mine:task", "task.options": {"kind": kind}}, says)
        for kind, says in {
            "raises": f"{TASK}: bad_of_mine.py, line 29: RuntimeError: no loss",
            "vector": "must give a loss that is one floating-point number",
            "undeclared": "gives extra as metrics of training, and declares none",
            "whole": "shape () for 'loss' of 13 examples by `evaluate`, which must be [n]",
            "column": "shape (13, 13) for 'loss' of 13 examples by `evaluate`, which must be",
            "short": "of 13 labels by `targets`; it is to make numpy arrays",
            "names": "evaluates los, and declares loss",
            "targets": "by `targets`; it is to make numpy arrays",
            "headline": "line 45: ValueError: headline 'best' is none of validation: loss",
        }.items()
    },
    "mixing": (
        {"task.name": "bad_of_mine:task", "task.options": {"kind": ""}, "data.mixup": 0.2},
        "does not know of mixed labels; set data.mixup=0",
    ),
    "running mixup": (
        {
            "task.name": "bad_of_mine:task",
            "task.options": {"kind": ""},
            "data.running_mixup": 0.4,
        },
        "has no `distributions` of its targets; set data.running_mixup=0",
    ),
    "target": ({"stop_at": ("val_odd", 3.0)}, "unknown metric 'val_odd' in stop_at; known: val_lo"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_line_that_says_where_before_anything_is_compiled(mistake, own):
    (own / "bad_of_mine.py").write_text(BAD)
    keys, says = MISTAKES[mistake]
    try:
        with pytest.raises(ConfigError) as caught:
            build(tiny_config(**keys, devices=1))
    finally:
        sys.modules.pop("bad_of_mine", None)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
