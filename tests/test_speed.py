"""How fast a run goes, and how much of the time it waits for data."""

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from monitors import quiet

from lbsgd import train
from lbsgd.data.source import Example, Splits, numbered_classes
from lbsgd.data.sources import catalogue
from lbsgd.data.sources.arrays import ArraySource
from lbsgd.run.calls import Call
from lbsgd.run.config import default_config, resolve
from lbsgd.run.record import speed
from lbsgd.run.record.metrics import read_metrics
from lbsgd.run.record.speed import Speed
from lbsgd.schedule.timeline import Timeline


def small_config(**keys: object):
    config = default_config()
    config.update(
        {
            "batch_size": 8,
            "worker_batch_size": 4,
            "total_steps": 24,
            "devices": 1,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {"reference_batch_size": 8, "warmup": "none"},
            "log": {"every_steps": 1, "sinks": ()},
        }
    )
    config.update_from_flattened_dict(keys)
    return resolve(config)


class Clock:
    """Time that passes only where it is said to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait_until(self, then: float) -> None:
        self.now = max(self.now, then)


class OnDevice:
    """A number that is there at a time."""

    def __init__(self, clock: Clock, there: float, value: float = 1.0) -> None:
        self.clock, self.there, self.value = clock, there, value

    def block_until_ready(self) -> None:
        self.clock.wait_until(self.there)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self.block_until_ready()
        return np.array(self.value)


class Loaded:
    """Batches 0, 1, ... that are loaded one after the other in so many seconds each."""

    def __init__(self, clock: Clock, seconds: np.ndarray) -> None:
        self.clock, self.at, self.there = clock, 0, clock.now + np.cumsum(seconds)

    @property
    def ready(self) -> bool:
        return self.at == len(self.there) or self.clock.now >= self.there[self.at]

    def __next__(self) -> int:
        if self.at == len(self.there):
            raise StopIteration
        self.clock.wait_until(self.there[self.at])
        self.at += 1
        return self.at - 1


class Lines:
    def __init__(self) -> None:
        self.lines, self.shown = [], []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def show(self, step: int, epoch: float, values: dict) -> None:
        self.shown.append(values)


def simulate(monkeypatch, load_seconds: np.ndarray, pauses: tuple[int, ...] = (), host=0.0):
    """A loop like `run`'s on a clock of its own, with updates of one second.

    An update starts when its batch is there, the host has taken its time over it, and the update
    before it is done.

    Returns:
      speed, what was shown, seconds that the devices stood still, seconds in all.
    """
    clock, out, count = Clock(), Lines(), len(load_seconds)
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=clock))
    config = SimpleNamespace(log=SimpleNamespace(every_steps=1))
    timeline = Timeline.constant(1000, 10)
    plan = SimpleNamespace(config=config, timeline=timeline, total_updates=count)
    monitor = quiet(plan, said=out)
    idle, free, begun, paused = 0.0, 0.0, 0.0, 0.0
    for i in monitor.batches(Loaded(clock, load_seconds)):
        if i == 0:
            begun = free = clock.now
        clock.now += host
        start = max(clock.now, free)
        idle, free = idle + start - free, start + 1.0
        value = OnDevice(clock, free)
        monitor.updates(Call(i, 1), {"train_loss": value, "skipped": OnDevice(clock, free, 0.0)})
        if i in pauses:
            monitor.drain()
            with monitor.paused():
                clock.now += 5.5
            paused, free = paused + 5.5, clock.now
    monitor.drain()
    return monitor.speed(), out, idle, clock.now - begun - paused


LOADS = {
    "slow": np.full(60, 3.0),
    "fast": np.full(60, 0.5),
    "equal": np.full(60, 1.0),
    "bursts": np.random.default_rng(0).exponential(1.2, 200),
    "slow at the end": np.repeat([0.5, 4.0], 30),
    "slow at the start": np.repeat([3.0, 0.5], [2, 58]),
}


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize("pauses", [(), (0,), (7, 8, 40)])
def test_the_wait_for_data_is_when_the_devices_stand_still(monkeypatch, name, pauses):
    """On a simulated clock; pauses for evaluation do not count, and the loading goes on in them."""
    speed, out, idle, seconds = simulate(monkeypatch, LOADS[name], pauses)
    images = 10 * len(LOADS[name])
    assert speed.waited == pytest.approx(idle / seconds, abs=1e-9)
    assert speed.delivered == pytest.approx(images / seconds)
    assert speed.needed == pytest.approx(images / (seconds - idle))
    said = [line for line in out.lines if "input-bound" in line]
    if not pauses:
        assert len(said) == {"fast": 0, "equal": 0, "slow at the start": 0}.get(name, 1)
    if name == "slow" and not pauses:
        steady = out.shown[40]  # a batch every three seconds, of which the step takes one
        assert steady["data_wait_percent"] == pytest.approx(200 / 3)
        assert steady["images_per_second"] == pytest.approx(10 / 3)
        assert "input-bound: " in str(speed)


def test_batches_that_are_there_are_not_waited_for(monkeypatch):
    """The devices are handed updates ahead: what the host does meanwhile costs them nothing."""
    speed, _, idle, seconds = simulate(monkeypatch, np.full(60, 0.01), host=0.3)
    assert speed.waited == 0
    assert idle == pytest.approx(0.3)  # before the first update
    assert seconds == pytest.approx(60.3)


@pytest.mark.parametrize(
    ("idle", "text"),
    [
        (1.0, "100 images/s, waited for data 10.0% of the time"),
        (
            2.0,
            "100 images/s, waited for data 20.0% of the time; input-bound: 125 images/s needed, "
            "100 delivered",
        ),
    ],
)
def test_past_a_tenth_of_the_time_a_run_is_input_bound(idle, text):
    assert str(Speed.over(1000, 10.0, idle)) == text


class Slow(ArraySource):
    """Ten milliseconds an example, ten times and more what training on it takes."""

    def __getitem__(self, index: int) -> Example:
        time.sleep(0.01)
        return super().__getitem__(index)


@pytest.mark.long
def test_a_run_that_waits_for_data_says_so(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    whole = images, np.arange(40) % 10, numbered_classes(10)
    splits = Splits(Slow(*whole), ArraySource(*whole))
    monkeypatch.setitem(catalogue.SOURCES, "mine", lambda config: splits)
    train.run(small_config(**{"data.source": "mine", "data.threads": 1}), tmp_path)
    updates = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train_loss" in line]
    assert updates[-1]["data_wait_percent"] > 50
    said = re.findall(
        r"input-bound: ([\d,]+) images/s needed, ([\d,]+) delivered", capsys.readouterr().out
    )
    assert len(said) == 2  # when it shows, and at the end
    for needed, delivered in said:
        assert int(needed.replace(",", "")) > int(delivered.replace(",", ""))


@pytest.mark.long
def test_a_run_that_never_waits_for_data_does_not_say_so(tmp_path, capsys):
    keys = {"source": "synthetic", "synthetic_on_device": True, "image_size": 8}
    keys |= {"synthetic_validation_examples": 8, "synthetic_classes": 10}
    train.run(small_config(**{f"data.{key}": value for key, value in keys.items()}), tmp_path)
    out = capsys.readouterr().out
    assert "24 updates" in out
    assert "images/s, waited for data" in out
    assert "input-bound" not in out
