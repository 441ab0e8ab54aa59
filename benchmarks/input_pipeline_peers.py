"""The peers of benchmarks/input_pipeline.py that share its interpreter, as their users write them.

Each reads the files of a folder of class folders. Children of input_pipeline.py; not run by hand.
"""

import pathlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from input_pipeline_child import AREA, ASPECT, SHAPE, Batches, Task, positions, random_box, serve


def list_files(folder: str) -> tuple[list[str], list[int]]:
    """Paths and labels, classes in name order."""
    classes = sorted(path for path in pathlib.Path(folder).iterdir())
    files = [(str(f), label) for label, c in enumerate(classes) for f in sorted(c.iterdir())]
    return [path for path, _ in files], [label for _, label in files]


def tf_data(task: Task) -> Callable[[int], Batches]:
    """tf.data with decode_and_crop_jpeg, and TensorFlow's own boxes, as in its own ResNet.

    Their sides are uniform, not their area as everyone else's: they are a sixth smaller.
    """
    import tensorflow as tf

    def box(shape):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            min_object_covered=0.0,
            area_range=AREA,
            aspect_ratio_range=ASPECT,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.stack([begin[0], begin[1], size[0], size[1]])

    return _tf_data(task, box)


def tf_data_same_boxes(task: Task) -> Callable[[int], Batches]:
    """The same, with boxes as `random_box` has them, so that it decodes as much as the others."""
    import tensorflow as tf

    def box(shape):
        height, width = tf.unstack(tf.cast(shape[:2], tf.float32))
        area = height * width * tf.random.uniform((10,), *AREA)
        aspect = tf.exp(tf.random.uniform((10,), *np.log(ASPECT).tolist()))
        w, h = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
        middle = [tf.minimum(width, height * ASPECT[1]), tf.minimum(height, width / ASPECT[0])]
        fits = (w <= width) & (h <= height)
        first = tf.argmax(fits)
        none = ~fits[first]
        w, h = tf.where(none, middle[0], w[first]), tf.where(none, middle[1], h[first])
        where = tf.where(none, 0.5, tf.random.uniform((2,)))
        top, left = where[0] * (height - h + 1), where[1] * (width - w + 1)
        return tf.cast(tf.stack([top, left, h, w]), tf.int32)

    return _tf_data(task, box)


def _tf_data(task: Task, box: Callable[..., Any]) -> Callable[[int], Batches]:
    import tensorflow as tf

    paths, labels = list_files(task.data)

    def load(path, label):
        data = tf.io.read_file(path)
        window = box(tf.image.extract_jpeg_shape(data))
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.cast(tf.image.resize(image, SHAPE) + 0.5, tf.uint8)
        return tf.image.random_flip_left_right(image), label

    def batches(number: int) -> Batches:
        data = tf.data.Dataset.from_tensor_slices((paths, labels))
        data = data.shuffle(len(paths)).repeat().take(task.examples)
        data = data.map(load, num_parallel_calls=task.workers, deterministic=False)
        options = tf.data.Options()
        options.threading.private_threadpool_size = task.workers
        data = data.batch(task.batch_size).prefetch(2).with_options(options)
        return iter(data.as_numpy_iterator())

    return batches


def torch_pil(task: Task) -> Callable[[int], Batches]:
    """PyTorch's DataLoader; the images by Pillow, as torchvision's transforms have it."""
    import torch
    from PIL import Image

    paths, labels = list_files(task.data)

    class Folder(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            with Image.open(paths[index]) as file:
                image = file.convert("RGB")
            top, left, h, w = random_box(image.height, image.width, random.uniform)
            image = image.crop((left, top, left + w, top + h))
            image = image.resize(SHAPE, Image.Resampling.BILINEAR)
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return torch.from_numpy(np.array(image)), labels[index]

    def batches(number: int) -> Batches:
        loader = torch.utils.data.DataLoader(
            Folder(),
            task.batch_size,
            sampler=positions(task, len(paths), number).tolist(),
            num_workers=task.workers if task.workers > 1 else 0,
        )
        return ((images.numpy(), labels.numpy()) for images, labels in loader)

    return batches


def opencv(task: Task) -> Callable[[int], Batches]:
    """OpenCV in a thread for each core; a batch is loaded while the one before it is used."""
    import cv2

    cv2.setNumThreads(1)
    paths, labels = list_files(task.data)

    def load(indices: list[int], out: np.ndarray) -> None:
        for index, place in zip(indices, out):
            data = np.fromfile(paths[index], np.uint8)
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
            top, left, h, w = random_box(*image.shape[:2], random.uniform)
            part = image[top : top + h, left : left + w]
            part = cv2.resize(part, SHAPE, interpolation=cv2.INTER_LINEAR)
            if random.random() < 0.5:
                cv2.flip(part, 1, dst=place)
            else:
                place[:] = part

    def batches(number: int) -> Batches:
        order = positions(task, len(paths), number).reshape(-1, task.batch_size).tolist()
        with ThreadPoolExecutor(task.workers) as pool:

            def begin(indices):
                images = np.empty((task.batch_size, *SHAPE, 3), np.uint8)
                parts = (slice(i, i + 8) for i in range(0, task.batch_size, 8))
                return images, [pool.submit(load, indices[p], images[p]) for p in parts]

            ahead = begin(order[0])
            for indices, following in zip(order, [*order[1:], None]):
                images, parts = ahead
                ahead = begin(following) if following else None
                for part in parts:
                    part.result()
                yield images, np.array([labels[i] for i in indices])

    return batches


if __name__ == "__main__":
    serve(
        {
            "tf.data": tf_data,
            "tf.data same boxes": tf_data_same_boxes,
            "torch": torch_pil,
            "opencv": opencv,
        }
    )
