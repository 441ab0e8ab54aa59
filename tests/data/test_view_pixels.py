"""The pixels of views against Pillow's whole images, resized and cropped as torchvision does it."""

import pathlib
import tarfile

import cv2
import numpy as np
import pytest
from image_files import encoded, picture, pillow
from PIL import Image

from lbsgd.data.views import CentreCrop, InceptionCrop

SAMPLES = pathlib.Path(__file__).parents[3] / "shared/data/imagenet_samples/imagenet_samples.tar"
BILINEAR = Image.Resampling.BILINEAR
# Of 255. Pillow chooses by the shape of an image whether it resizes across or down first, and
# rounds in between: where it takes the other order a quarter of the pixels of a noisy image are off
# by 1.
OF_A_FILE, OF_ALL_FILES, OF_A_PIXEL = 0.3, 0.1, 2


def centre(image: np.ndarray, crop: int, short_side: int) -> np.ndarray:
    """torchvision's Resize(short_side) and CenterCrop(crop) of a Pillow image."""
    height, width = image.shape[:2]
    if width <= height:
        size = short_side, int(short_side * height / width)
    else:
        size = int(short_side * width / height), short_side
    left, top = (round((side - crop) / 2.0) for side in size)
    resized = Image.fromarray(image).resize(size, BILINEAR)
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))


def seen(view, image: np.ndarray | bytes) -> np.ndarray:
    out = np.full(view.shape, 77, np.uint8)
    view(image, view.draw(np.array([0]), np.array([3]))[0], out)
    return out


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The mean; that of no pixel is large."""
    apart = np.abs(ours.astype(int) - theirs)
    assert apart.max() <= OF_A_PIXEL
    assert apart.mean() <= OF_A_FILE
    return apart.mean()


SIZES = [(60, 300), (300, 60), (21, 13), (9, 200), (64, 64), (72, 72), (150, 203), (640, 427)]
KINDS = {
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "rows": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "full colour": {"subsampling": 0},
    "422": {"subsampling": 1},
    "png": {"kind": "PNG"},
    "palette": {"kind": "PNG", "mode": "P"},
    "png grey": {"kind": "PNG", "mode": "L"},
}


@pytest.mark.parametrize(("crop", "short_side"), [(64, 73), (64, 64), (48, 200)])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_sees_the_pixels_of_torchvision(kind, crop, short_side):
    view = CentreCrop((crop, crop, 3), short_side)
    means = []
    for seed, size in enumerate(SIZES):
        data = encoded(picture(seed, *size), **KINDS[kind])
        means.append(difference(seen(view, data), centre(pillow(data), crop, short_side)))
    assert np.mean(means) <= OF_ALL_FILES


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_sees_the_same_of_pixels_as_of_files(size, channels):
    """As those of npz files and raw packed sets."""
    image = picture(0, *size)
    ours = seen(CentreCrop((64, 64, channels), 73), image[..., :channels])
    difference(ours, centre(image, 64, 73)[..., :channels])


def test_at_the_size_of_the_crop_evaluation_changes_no_pixel():
    image = picture(0, 64, 90)
    np.testing.assert_array_equal(seen(CentreCrop((64, 64, 3), 64), image), image[:, 13:77])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("file", [False, True])
def test_a_training_crop_is_antialiased_as_torchvision_does_it_if_so_chosen(size, file):
    """Cut out first: the pixels around the box are not seen."""
    image = picture(1, *size)
    data = encoded(image)
    view = InceptionCrop((20, 20, 3), 0, antialias=True)
    top, left, height, width = view.box(*size, view.draw(np.array([0]), np.array([3]))[0])
    whole = Image.fromarray(pillow(data) if file else image)
    cut = whole.crop((left, top, left + width, top + height))
    difference(seen(view, data if file else image), np.asarray(cut.resize((20, 20), BILINEAR)))


def test_a_training_crop_is_opencvs_unless_so_chosen():
    image = picture(1, 150, 203)
    view = InceptionCrop((64, 64, 3), 0, area=(0.4, 0.5))
    top, left, height, width = view.box(150, 203, view.draw(np.array([0]), np.array([3]))[0])
    part = image[top : top + height, left : left + width]
    expected = cv2.resize(part, (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(seen(view, image), expected)


@pytest.mark.long
@pytest.mark.skipif(not SAMPLES.exists(), reason="the ImageNet samples are not in ../shared/data")
def test_evaluation_sees_the_pixels_of_torchvision_in_imagenet():
    view, means = CentreCrop((224, 224, 3)), []
    with tarfile.open(SAMPLES) as tar:
        files = [tar.extractfile(member).read() for member in tar]
    assert len(files) == 365
    for data in files:
        means.append(difference(seen(view, data), centre(pillow(data), 224, 256)))
    assert np.mean(means) <= OF_ALL_FILES
