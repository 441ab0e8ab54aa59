"""Batches are a function of the update index, whatever holds them."""

import collections
import dataclasses
import functools
import io
import itertools
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from lbsgd.data.augment import Color, CropAndFlip
from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.image_sizes import ImageSizes
from lbsgd.data.images.resize import shrink
from lbsgd.data.mixing import Mixing
from lbsgd.data.order import Order
from lbsgd.data.pipeline import EvalBatches, Loader, TrainBatches, load_job
from lbsgd.data.source import Example, numbered_classes
from lbsgd.data.sources.arrays import ArraySource
from lbsgd.data.views import InceptionCrop, Whole
from lbsgd.schedule.timeline import Timeline
from lbsgd.workers.placement import Placement, place

COUNT = 37  # examples; no multiple of any minibatch here
AUGMENT = CropAndFlip(seed=9, padding=2, flip=True)
NO_MIXING = Mixing(0, mixup=0.0, cutmix=0.0, erasing=0.0, image_shape=(4, 5, 3))
PLACES = list(itertools.product(range(1, 9), (1, 2, 4)))
IMAGENET = 1_281_167
CROP = InceptionCrop((6, 7, 3), seed=9)
COLOURS = (CropAndFlip(seed=9, flip=True), Color(9, (0.4, 0.4, 0.4), 0.1))


def source(count: int = COUNT) -> ArraySource:
    """Images of noise; the label of each is its own index."""
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(count), numbered_classes(count))


def train_batches(placement: Placement, threads: int = 1, examples=None) -> TrainBatches:
    timeline = Timeline.constant(COUNT, placement.batch_size)
    loader = Loader(examples or source(), Whole((4, 5, 3)), (AUGMENT,), CorruptExamples(), threads)
    return TrainBatches(
        loader, Order(COUNT, seed=4), timeline, {placement.batch_size: placement}, NO_MIXING
    )


def eval_batches(placement: Placement, batch_size: int, count: int = COUNT) -> EvalBatches:
    return EvalBatches(Loader(source(count), Whole((4, 5, 3))), placement, batch_size)


def expected_minibatch(update: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the minibatch's rows, one example after the other."""
    images, labels = [], []
    for position in range(update * size, (update + 1) * size):
        epoch, example = Order(COUNT, seed=4)(np.array([position]))
        image, label = source()[int(example[0])]
        augmented = image[None].copy()
        AUGMENT(augmented, epoch, example)
        images.append(augmented[0])
        labels.append(label)
    return np.stack(images), np.array(labels)


def real_rows(slots: np.ndarray, placement: Placement) -> np.ndarray:
    """`[A, D * L, n, ...]` -> the rows of workers 0..k-1, `[kn, ...]`."""
    slots = np.asarray(slots)
    workers = slots.reshape(-1, *slots.shape[2:])[: placement.workers]
    return workers.reshape(-1, *slots.shape[3:])


@pytest.mark.parametrize(("devices", "steps"), PLACES)
def test_workers_see_the_same_examples_in_every_place(devices, steps):
    """Bitwise, in a minibatch that straddles epochs (2 x 16 < 37 < 3 x 16) and ones that don't."""
    placement = place(16, 2, devices=devices, accumulation_steps=steps)
    batches = train_batches(placement)
    for update in (0, 2, 100):
        loaded = load_job(batches.job(update))
        images, labels = expected_minibatch(update, 16)
        assert loaded["image"].shape[:3] == placement.rows_of_slot().shape
        np.testing.assert_array_equal(real_rows(loaded["image"], placement), images)
        np.testing.assert_array_equal(real_rows(loaded["label"], placement), labels)


@pytest.mark.parametrize(("devices", "steps", "threads"), [(1, 1, 1), (5, 2, 3), (8, 1, 2)])
def test_smaller_images_are_those_augmented_then_shrunk(devices, steps, threads):
    placement = place(16, 2, devices=devices, accumulation_steps=steps)
    sizes = ImageSizes(((0, (2, 3)), (2, (4, 5))))
    mixing = dataclasses.replace(NO_MIXING, erasing=1.0)
    batches = dataclasses.replace(
        train_batches(placement, threads), image_sizes=sizes, mixing=mixing
    )
    for update, batch in enumerate(batches.between(0, 4)):
        whole, labels = expected_minibatch(update, 16)
        expected = np.empty((16, *sizes(update), 3), np.uint8)
        for image, out in zip(whole, expected):
            shrink(image, out)
        np.testing.assert_array_equal(real_rows(batch["image"], placement), expected)
        np.testing.assert_array_equal(real_rows(batch["label"], placement), labels)
        boxes = real_rows(batch["erase_box"], placement)
        assert ((boxes[:, :2] + boxes[:, 2:]) <= sizes(update)).all()


def test_types_of_a_batch():
    loaded = load_job(train_batches(place(16, 2, devices=2)).job(0))
    assert {key: str(array.dtype) for key, array in loaded.items()} == {
        "image": "uint8",
        "label": "int32",
    }


def test_idle_slots_hold_a_worker_of_the_minibatch():
    """8 workers on 5 devices x 2 lanes."""
    placement = place(16, 2, devices=5)
    loaded = load_job(train_batches(placement).job(1))
    slots = loaded["image"].reshape(10, 2, 4, 5, 3)
    for idle in slots[8:]:
        assert any((idle == worker).all() for worker in slots[:8])


@pytest.mark.parametrize("workers", [1, 3, 8, 40])
def test_each_epoch_has_each_example_once(workers):
    """Whatever the minibatch: of 1, 3, 8 or 40 examples of a set of 37, three epochs and more."""
    placement = place(workers, 1, devices=3, accumulation_steps=2)
    updates = -(-3 * COUNT // workers)
    batches = train_batches(placement).between(0, updates)
    labels = np.concatenate([real_rows(batch["label"], placement) for batch in batches])
    assert len(labels) == updates * workers
    for epoch in range(3):
        seen = labels[epoch * COUNT : (epoch + 1) * COUNT]
        assert sorted(seen.tolist()) == list(range(COUNT))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 4), (7, 11), (2, 2), (10**6, 10**6 + 2)])
def test_between_yields_each_update_once_and_in_order(threads, start, stop):
    placement = place(16, 2, devices=5, accumulation_steps=1)
    batches = train_batches(placement, threads)
    given = list(batches.between(start, stop))
    assert len(given) == stop - start
    for update, batch in zip(range(start, stop), given):
        loaded = load_job(batches.job(update))
        assert batch.keys() == loaded.keys()
        for key, array in loaded.items():
            np.testing.assert_array_equal(batch[key], array)


@pytest.mark.parametrize("devices", range(1, 9))
def test_each_device_holds_the_slots_of_its_lanes(devices):
    placement = place(16, 1, devices=devices, accumulation_steps=2)
    batches = train_batches(placement)
    (batch,) = batches.between(3, 4)
    loaded = load_job(batches.job(3))
    for key, array in batch.items():
        assert array.sharding.is_equivalent_to(placement.batch_sharding, array.ndim)
        assert len(array.addressable_shards) == devices
        for shard in array.addressable_shards:
            first = jax.devices().index(shard.device) * placement.lanes
            mine = loaded[key][:, first : first + placement.lanes]
            np.testing.assert_array_equal(shard.data, mine)


def test_a_far_update_is_there_at_once():
    placement = place(16, 2, devices=4)
    images, labels = expected_minibatch(10**6, 16)
    (batch,) = train_batches(placement).between(10**6, 10**6 + 1)
    np.testing.assert_array_equal(real_rows(batch["image"], placement), images)
    np.testing.assert_array_equal(real_rows(batch["label"], placement), labels)


def test_processes_load_the_slots_of_their_devices(monkeypatch):
    """Devices 0-2 of one process, 3 of another, 4-5 of a third: together the whole batch."""
    placement = place(24, 1, devices=6, accumulation_steps=2)
    whole = load_job(train_batches(placement).job(2))
    fakes = [SimpleNamespace(process_index=process) for process in (0, 0, 0, 1, 2, 2)]
    placement.__dict__["mesh"] = SimpleNamespace(devices=np.array(fakes))
    parts = []
    for process, slots in enumerate((6, 2, 4)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(load_job(train_batches(placement).job(2)))
        assert parts[-1]["label"].shape == (2, slots, 1)
    for key, array in whole.items():
        together = np.concatenate([part[key] for part in parts], axis=1)
        np.testing.assert_array_equal(together, array)


@functools.cache
def jpeg(index: int) -> bytes:
    """An image of noise, of a size of its own."""
    random = np.random.default_rng(index)
    pixels = random.integers(0, 256, (15 + index % 11, 28 - index % 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, progressive=index % 2 == 0)
    return file.getvalue()


class Jpegs:
    """The label of each is its own index; notes which are asked for."""

    image_shape = (15, 28, 3)
    fingerprint = "jpegs"
    notes = ()

    def __init__(self, count: int = COUNT) -> None:
        self.count, self.classes = count, numbered_classes(count)
        self.asked: collections.deque[int] = collections.deque()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        self.asked.append(index)
        return Example(jpeg(index), index)

    def name(self, index: int) -> str:
        return f"{index}.jpg"


def jpeg_batches(placement: Placement, threads: int = 1, examples=None) -> TrainBatches:
    examples = examples or Jpegs()
    count = len(examples)
    timeline = Timeline.constant(count, placement.batch_size)
    loader = Loader(examples, CROP, COLOURS, CorruptExamples(), threads)
    return TrainBatches(
        loader, Order(count, seed=4), timeline, {placement.batch_size: placement}, NO_MIXING
    )


@functools.cache
def expected_crops(update: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row by row, as `expected_minibatch`."""
    images, labels = [], []
    for position in range(update * size, (update + 1) * size):
        epoch, example = Order(COUNT, seed=4)(np.array([position]))
        image = np.empty((1, *CROP.shape), np.uint8)
        CROP(jpeg(int(example[0])), CROP.draw(epoch, example)[0], image[0])
        for augment in COLOURS:
            augment(image, epoch, example)
        images.append(image[0])
        labels.append(int(example[0]))
    return np.stack(images), np.array(labels)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(("devices", "steps"), [(1, 1), (2, 1), (3, 2), (5, 1), (1, 4), (8, 1)])
def test_jpegs_of_any_size_are_seen_alike_in_every_place(devices, steps, threads):
    """Bitwise: crop, flip and colours belong to the example."""
    placement = place(16, 2, devices=devices, accumulation_steps=steps)
    for update, batch in enumerate(jpeg_batches(placement, threads).between(0, 4)):
        images, labels = expected_crops(update, 16)
        np.testing.assert_array_equal(real_rows(batch["image"], placement), images)
        np.testing.assert_array_equal(real_rows(batch["label"], placement), labels)


def test_rows_are_shared_among_threads_whatever_their_number():
    """Of batches of 1 to 700 rows, in no, few and many parts."""
    crop = Whole((4, 5, 3))
    for threads, rows in itertools.product((1, 2, 7, 64), (1, 2, 3, 63, 65, 700)):
        examples = np.arange(rows).reshape(1, rows, 1) % COUNT
        job = Loader(source(), crop, threads=threads).job(np.zeros_like(examples), examples)
        np.testing.assert_array_equal(load_job(job)["image"], source().images[examples])
        assert len(job.tasks) <= rows


def as_processes(placement: Placement, devices: tuple[int, ...], monkeypatch):
    """Goes through processes that have so many of the placement's devices each."""
    owners = np.repeat(np.arange(len(devices)), devices)
    fakes = [SimpleNamespace(process_index=int(process)) for process in owners]
    placement.__dict__["mesh"] = SimpleNamespace(devices=np.array(fakes))
    for process in range(len(devices)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        yield process


@pytest.mark.parametrize("devices", [(6,), (3, 3), (4, 2), (2, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize("count", [37, 48])
def test_processes_load_each_example_once_an_epoch(monkeypatch, devices, count):
    """Together, over the first updates that make up whole epochs; each what it alone holds."""
    placement = place(24, 1, devices=6, accumulation_steps=2)
    updates = count // math.gcd(count, 24)
    pairs, rows = [], []
    for process in as_processes(placement, devices, monkeypatch):
        examples = Jpegs(count)
        batches = jpeg_batches(placement, examples=examples)
        asked = [batches.examples(update) for update in range(updates)]
        rows.append([load_job(batches.job(update)) for update in range(updates)])
        pairs += [pair for part in asked for pair in zip(*(x.ravel().tolist() for x in part))]
        assert len(examples.asked) == updates * 4 * devices[process]
        assert sorted(examples.asked) == sorted(i for part in asked for i in part[1].ravel())
    assert sorted(pairs) == list(itertools.product(range(updates * 24 // count), range(count)))
    if count == COUNT:
        for update in range(updates):
            whole = np.concatenate([parts[update]["image"] for parts in rows], axis=1)
            images = expected_crops(update, 24)[0]
            np.testing.assert_array_equal(real_rows(whole, placement), images)


@pytest.mark.parametrize("devices", [(6,), (3, 3), (4, 2), (2, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize("count", [1, 37, 48])
def test_processes_evaluate_each_example_once(monkeypatch, devices, count):
    placement = place(24, 1, devices=6, accumulation_steps=2)
    labels, asked = [], []
    for _ in as_processes(placement, devices, monkeypatch):
        examples = Jpegs(count)
        for job in EvalBatches(Loader(examples, CROP), placement, 24).jobs():
            part = load_job(job)
            labels += part["label"][part["mask"]].tolist()
        asked += examples.asked
    assert sorted(labels) == sorted(asked) == list(range(count))


class Counted:
    """As many examples as ImageNet has, of next to no size; notes which are asked for."""

    classes, image_shape, fingerprint, notes = numbered_classes(1000), (4, 5, 3), "counted", ()

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return IMAGENET

    def __getitem__(self, index: int) -> Example:
        self.asked.append(index)
        return Example(np.full((4, 5, 3), index % 251, np.uint8), index % 1000)

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize("update", [0, 14_000, 14_075, 10**6])
def test_a_far_update_of_imagenet_touches_its_own_rows_alone(monkeypatch, update):
    """kn=8192 on 8 devices of 4 processes: the third holds rows 4096 to 6143."""
    placement = place(8192, 32, devices=8)
    expected = Order(IMAGENET, seed=4)(8192 * update + np.arange(4096, 6144))[1]
    for process in as_processes(placement, (2, 2, 2, 2), monkeypatch):
        if process != 2:
            continue
        examples = Counted()
        loader = Loader(examples, Whole((4, 5, 3)))
        timeline = Timeline.constant(IMAGENET, 8192)
        placements = {placement.batch_size: placement}
        batches = TrainBatches(loader, Order(IMAGENET, seed=4), timeline, placements, NO_MIXING)
        batch = load_job(batches.job(update))
        assert examples.asked == expected.tolist()
        np.testing.assert_array_equal(batch["label"].ravel(), expected % 1000)
        np.testing.assert_array_equal(batch["image"][..., 0, 0, 0].ravel(), expected % 251)


class TornSource(ArraySource):
    """Fails at one example."""

    def __getitem__(self, index: int) -> Example:
        if index == 17:
            raise OSError("example 17 is torn")
        return super().__getitem__(index)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_the_source_comes_out(threads):
    whole = source()
    torn = TornSource(whole.images, whole.labels, numbered_classes(COUNT))
    batches = train_batches(place(16, 2, devices=2), threads, torn)
    with pytest.raises(OSError, match="example 17 is torn"):
        list(batches.between(0, 3))


@pytest.mark.parametrize(
    ("count", "batch_size"),
    [(48, 24), (48, 16), (37, 16), (37, 37), (37, 1000), (37, 1), (1, 8), (360, 128)],
)
@pytest.mark.parametrize(("devices", "steps"), [(1, 1), (5, 1), (8, 1), (4, 2), (3, 4)])
def test_evaluation_has_every_example_once(count, batch_size, devices, steps):
    placement = place(48, 2, devices=devices, accumulation_steps=steps)
    batches = list(eval_batches(placement, batch_size, count))
    labels = np.concatenate([np.asarray(b["label"])[np.asarray(b["mask"])] for b in batches])
    assert sorted(labels.tolist()) == list(range(count))
    images = np.concatenate([np.asarray(b["image"])[np.asarray(b["mask"])] for b in batches])
    np.testing.assert_array_equal(images, source(count).images[labels])


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 10, 24, 1000])
def test_evaluation_batches_have_one_shape(devices, batch_size):
    """Of the least multiple of the slots that holds `batch_size`, or the whole set."""
    placement = place(8, 1, devices=devices)
    slots = devices * placement.lanes
    each = next(e for e in itertools.count(1) if e * slots >= min(batch_size, COUNT))
    batches = list(eval_batches(placement, batch_size))
    for batch in batches:
        assert batch["image"].shape == (1, slots, each, 4, 5, 3)
        assert batch["label"].shape == batch["mask"].shape == (1, slots, each)
        assert batch["mask"].dtype == bool
        assert batch["label"].dtype == np.int32
        for array in batch.values():
            assert array.sharding.is_equivalent_to(placement.batch_sharding, array.ndim)
    # The last batch is the only one padded.
    assert all(np.asarray(batch["mask"]).all() for batch in batches[:-1])
    assert np.asarray(batches[-1]["mask"]).any()
