"""Small images for the tests of sources and of their preparation, and trees of them."""

import io
import pathlib
import tarfile
import zipfile

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")
LAYOUTS = {
    "plain": ("train/", "val/"),
    "dot": ("./train/", "./validation/"),
    "around": ("some/thing/train/", "some/thing/test/"),
}


def picture(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    """Waves and noise, uint8 `[h, w, 3]`; no two are alike."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + seed), np.cos(y / 5 - seed), np.sin((x + y) / 9)], -1)
    noise = np.random.default_rng(seed).normal(0, 10, waves.shape)
    return np.clip(127 + 90 * waves + noise, 0, 255).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, **options)
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    """The pixels of an image file, as Pillow has them."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def variants() -> dict[str, bytes]:
    """Files as they come up in ImageNet and elsewhere, by name."""
    return {
        "baseline.JPEG": encoded(picture(0)),
        "progressive.jpg": encoded(picture(1, 41, 33), progressive=True),
        "grey.jpeg": encoded(picture(2, 25, 26), mode="L"),
        "cmyk.JPG": encoded(picture(3), mode="CMYK"),
        "disguised.JPEG": encoded(picture(4, 35, 24), "PNG"),
        "palette.png": encoded(picture(5), "PNG", "P"),
        "alpha.PNG": encoded(picture(6), "PNG", "RGBA"),
        "bitmap.bmp": encoded(picture(7), "BMP"),
        "web.webp": encoded(picture(8), "WEBP"),
    }


def truncated(seed: int = 9) -> bytes:
    """The first half of a JPEG."""
    data = encoded(picture(seed, 64, 64))
    return data[: len(data) // 2]


def tree(count: int = 4, classes: tuple[str, ...] = CLASSES, first: int = 0) -> dict[str, bytes]:
    """JPEGs by path, `count` of each class, of several sizes."""
    return {
        f"{name}/{i}.jpg": encoded(picture(first + count * label + i, 20 + i % 7, 30))
        for label, name in enumerate(classes)
        for i in range(count)
    }


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """The same files in a folder."""
    return {f"{folder}/{path}": data for path, data in files.items()}


def write(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    """Writes files by path."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def contents(source) -> list[tuple[bytes, str]]:
    """The images of a source as bytes, and the names of their classes."""
    pairs = [source[i] for i in range(len(source))]
    return [
        (image if isinstance(image, bytes) else image.tobytes(), source.classes[label])
        for image, label in pairs
    ]


def write_tar(path: pathlib.Path, files: dict[str, bytes], mode: str = "w", **options):
    with tarfile.open(path, mode, **options) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: pathlib.Path, files: dict[str, bytes], method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "a", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def shuffled(files: dict[str, bytes]) -> dict[str, bytes]:
    names = list(files)
    np.random.default_rng(0).shuffle(names)
    return {name: files[name] for name in names}
