"""Examples that cannot be read: never silently replaced, and replaced alike everywhere."""

import functools
import io
import json
import pathlib
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hanging import HANG_SECONDS
from PIL import Image

from lbsgd import train
from lbsgd.data.augment import Color, CropAndFlip
from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.mixing import Mixing
from lbsgd.data.order import Order
from lbsgd.data.pipeline import EvalBatches, Loader, TrainBatches
from lbsgd.data.source import Example, numbered_classes
from lbsgd.data.views import InceptionCrop
from lbsgd.run.config import default_config, resolve
from lbsgd.run.record.metrics import evaluations, read_metrics
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError
from lbsgd.workers.placement import Placement, place

ROOT = pathlib.Path(__file__).parent.parent.parent
COUNT = 23
SHAPE = (6, 7, 3)
TORN = (4, 5, 22)  # two next to each other, and the last one
VIEW = InceptionCrop(SHAPE, seed=3)
AUGMENT = (CropAndFlip(3, flip=True), Color(3, (0.4, 0.4, 0.4), 0.1))


@functools.cache
def jpeg(index: int, torn: bool) -> bytes:
    """An image of noise of a size of its own, or the first half of the file."""
    random = np.random.default_rng(index)
    pixels = random.integers(0, 256, (20 + index % 7, 30 - index % 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    data = file.getvalue()
    return data[: len(data) // 2] if torn else data


class Files:
    """JPEGs, some of them torn; the label of each is its own index."""

    image_shape, notes = (20, 30, 3), ()

    def __init__(self, torn: tuple[int, ...] = TORN) -> None:
        self.torn, self.classes, self.fingerprint = torn, numbered_classes(COUNT), f"{torn}"

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Example:
        return Example(jpeg(index, index in self.torn), index)

    def name(self, index: int) -> str:
        return f"train/{index}.jpg"


def train_batches(
    placement: Placement, corrupt: CorruptExamples, threads: int = 1, torn: tuple[int, ...] = TORN
) -> TrainBatches:
    loader = Loader(Files(torn), VIEW, AUGMENT, corrupt, threads)
    timeline = Timeline.constant(COUNT, placement.batch_size)
    none = Mixing(0, mixup=0.0, cutmix=0.0, erasing=0.0, image_shape=SHAPE)
    placements = {placement.batch_size: placement}
    return TrainBatches(loader, Order(COUNT, seed=4), timeline, placements, none)


def eval_batches(placement: Placement, corrupt: CorruptExamples, threads: int = 1) -> EvalBatches:
    return EvalBatches(Loader(Files(), VIEW, (), corrupt, threads), placement, 16)


def expected_minibatch(update: int, size: int) -> tuple[np.ndarray, list[int]]:
    """Row by row; the next whole example stands in, with its own label, crop, flip and colours."""
    images, labels = [], []
    for position in range(update * size, (update + 1) * size):
        epoch, example = Order(COUNT, seed=4)(np.array([position]))
        while int(example[0]) in TORN:
            example = (example + 1) % COUNT
        image = np.zeros((1, *SHAPE), np.uint8)
        VIEW(jpeg(int(example[0]), False), VIEW.draw(epoch, example)[0], image[0])
        for augment in AUGMENT:
            augment(image, epoch, example)
        images.append(image[0])
        labels.append(int(example[0]))
    return np.stack(images), labels


def names(path: pathlib.Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.keys() == {"name", "reason"} for line in lines)
    return [line["name"] for line in lines]


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(("devices", "steps"), [(1, 1), (4, 1), (2, 2)])
def test_the_next_whole_example_stands_in(threads, devices, steps):
    """On any placement and number of threads, in minibatches that straddle epochs and not."""
    placement = place(16, 2, devices=devices, accumulation_steps=steps)
    batches = train_batches(placement, CorruptExamples("skip", 3), threads)
    replaced = 0
    for update, batch in enumerate(batches.between(0, 3)):
        images, labels = expected_minibatch(update, 16)
        np.testing.assert_array_equal(np.asarray(batch["image"]).reshape(images.shape), images)
        assert np.asarray(batch["label"]).ravel().tolist() == labels
        replaced += int(np.isin(batches.examples(update)[1], TORN).sum())
    assert replaced >= 6  # in two epochs


@pytest.mark.parametrize("threads", [1, 3])
def test_by_default_the_first_one_stops_the_loading(threads):
    batches = train_batches(place(16, 2, devices=2), CorruptExamples(), threads, torn=(5,))
    says = r"train/5\.jpg is corrupt: .*; mend it, or set data\.on_corrupt='skip'"
    with pytest.raises(ConfigError, match=says):
        list(batches.between(0, 3))


@pytest.mark.parametrize("threads", [1, 3])
def test_one_too_many_stops_the_loading(threads):
    batches = train_batches(place(16, 2, devices=2), CorruptExamples("skip", 2), threads)
    # Of several threads that are past it the first in the batch speaks.
    says = r"train/\d+\.jpg is corrupt: .*; it is number \d+, more than data\.max_corrupt=2"
    with pytest.raises(ConfigError, match=says):
        list(batches.between(0, 3))


def test_without_a_whole_example_there_is_nothing_to_stand_in():
    """However many may be corrupt."""
    everything = tuple(range(COUNT))
    batches = train_batches(place(16, 2, devices=2), CorruptExamples("skip", 1000), torn=everything)
    with pytest.raises(ConfigError, match="no example can be read"):
        list(batches.between(0, 1))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_in_evaluation_they_are_masked(threads):
    placement = place(16, 2, devices=4)
    corrupt = CorruptExamples("skip", 3)
    labels = []
    for batch in eval_batches(placement, corrupt, threads):
        mask = np.asarray(batch["mask"])
        labels += np.asarray(batch["label"])[mask].tolist()
        assert not np.asarray(batch["image"])[~mask].any()
        assert not np.asarray(batch["label"])[~mask].any()
    assert sorted(labels) == sorted(set(range(COUNT)) - set(TORN))
    assert corrupt.names == {f"train/{i}.jpg" for i in TORN}


@pytest.mark.parametrize(
    ("corrupt", "says"), [(CorruptExamples(), "mend it"), (CorruptExamples("skip", 2), "=2")]
)
def test_in_evaluation_they_stop_what_they_would_stop_in_training(corrupt, says):
    with pytest.raises(ConfigError, match=says):
        list(eval_batches(place(16, 2, devices=4), corrupt))


class SlowName(str):
    """Looking it up takes long enough for another thread to come in between."""

    def __hash__(self) -> int:
        time.sleep(0.0002)
        return super().__hash__()


def test_each_name_is_written_once(tmp_path):
    """However often an example comes, and in however many threads at once."""
    corrupt = CorruptExamples("skip", 20)
    corrupt.log_to(tmp_path / "corrupt.jsonl")
    given = [SlowName(f'file\n{i} "ä" \udcff') for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: corrupt.note(given[i // 20], CorruptError("torn")), range(400)))
    assert sorted(names(tmp_path / "corrupt.jsonl")) == sorted(given)
    assert corrupt.names == set(given)


def test_nothing_corrupt_leaves_no_file(tmp_path):
    CorruptExamples("skip", 3).log_to(tmp_path / "corrupt.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_those_of_before_count(tmp_path):
    path = tmp_path / "corrupt.jsonl"
    first = CorruptExamples("skip", 3)
    first.log_to(path)
    first.note("a", CorruptError("torn"))
    first.note("b", CorruptError("torn"))
    again = CorruptExamples("skip", 3)
    again.log_to(path)
    assert again.names == {"a", "b"}
    again.note("b", CorruptError("torn"))
    again.note("c", CorruptError("torn"))
    with pytest.raises(ConfigError, match=r"d is corrupt: torn; it is number 4, more than .*=3"):
        again.note("d", CorruptError("torn"))
    assert names(path) == ["a", "b", "c", "d"]


def test_starting_again_allows_no_more_of_them(tmp_path):
    """The one too many stops each time, and a lower max_corrupt holds for those of before."""
    path = tmp_path / "corrupt.jsonl"
    path.write_text("".join(json.dumps({"name": n, "reason": "torn"}) + "\n" for n in "abcd"))
    again = CorruptExamples("skip", 3)

    def start_again() -> None:
        again.log_to(path)
        again.note("d", CorruptError("torn"))

    with pytest.raises(ConfigError, match="max_corrupt=3"):
        start_again()


@pytest.mark.parametrize("text", ["{", '"a"', "[1]", '{"reason": "torn"}', "3"])
def test_a_damaged_list_is_an_error(tmp_path, text):
    path = tmp_path / "corrupt.jsonl"
    path.write_text(f"{text}\n")
    with pytest.raises(ConfigError, match=r"corrupt\.jsonl is damaged; mend or remove it"):
        CorruptExamples("skip", 3).log_to(path)


@pytest.fixture
def folders(tmp_path) -> pathlib.Path:
    """Images as files: three of train/ are torn, and one of val/."""
    for part, torn in (("train", TORN), ("val", (7,))):
        for i in range(COUNT):
            path = tmp_path / "images" / part / f"class {i % 10}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(i, i in torn))
    return tmp_path / "images"


def run_config(folders: pathlib.Path):
    config = default_config()
    config.update(
        {
            "batch_size": 8,
            "worker_batch_size": 4,
            "total_steps": 9,
            "devices": 2,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {"reference_batch_size": 8},
            "data": {
                "source": "folder",
                "dir": str(folders),
                "crop": "inception",
                "image_size": 8,
                "on_corrupt": "skip",
                "max_corrupt": 4,
            },
            "log": {"every_steps": 1, "sinks": ()},
        }
    )
    return resolve(config)


@pytest.mark.long
def test_a_run_names_them_and_leaves_them_out(folders, tmp_path, capsys):
    config = run_config(folders)
    stopped = train.run(config, tmp_path / "run", should_stop=lambda done: done == 5)
    assert not stopped.complete
    assert train.run(config, tmp_path / "run").complete
    expected = [f"train/class {i % 10}/{i}.jpg" for i in TORN] + ["val/class 7/7.jpg"]
    listed = tmp_path / "run" / "corrupt.jsonl"
    assert sorted(names(listed)) == sorted(expected)
    assert f"corrupt examples: 4, named in {listed}" in capsys.readouterr().out
    (evaluation,) = evaluations(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    wrong = evaluation["val_error"] / 100 * 22  # of 22, not of 23
    assert wrong == pytest.approx(round(wrong), abs=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], r"lbsgd: train/class \d/\d+\.jpg is corrupt: .*data\.on_corrupt='skip'"),
        (
            ["--config.data.on_corrupt=skip", "--config.data.max_corrupt=2"],
            r"lbsgd: train/class \d/\d+\.jpg is corrupt: .*more than data\.max_corrupt=2",
        ),
    ],
    ids=["error", "one too many"],
)
def test_for_the_user_it_is_one_line_and_exit_code_2(folders, tmp_path, args, says):
    keys = {
        "data.source": "folder",
        "data.dir": folders,
        "data.crop": "inception",
        "data.image_size": 8,
        "batch_size": 16,
        "worker_batch_size": 8,
        "model.width": 0.25,
        "learning_rate.warmup": "none",
        "log.sinks": (),  # TensorFlow has things of its own to say
    }
    command = [sys.executable, "-m", "lbsgd.main", "--config=configs/digits.py"]
    command += [f"--config.{key}={value}" for key, value in keys.items()]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert re.match(says, done.stderr), done.stderr
