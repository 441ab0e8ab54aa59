"""The forms of the data that benchmarks/input_pipeline.py reads, made in a folder of their own."""

import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image

# How `lbsgd prepare` makes each form.
FORMS = {
    "full": [],
    "jpeg90": ["--quality=90"],
    "jpeg400": ["--max_side=400", "--quality=90"],
    "raw400": ["--max_side=400", "--raw"],
    "jpeg256": ["--max_side=256", "--quality=90"],
}
SMALL_EXAMPLES = 1_281_167


def lay_out(data: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """A folder of class folders `train`, and `val`, the same once more; returns the former."""
    train = scratch / "folder" / "train"
    if not train.exists():
        part = scratch / "part"
        remove(part)
        if data.is_dir():
            shutil.copytree(data, part)
        else:
            _unpack(data, part)
        train.parent.mkdir()
        part.rename(train)
        (scratch / "folder" / "val").symlink_to("train", target_is_directory=True)
    return train


def _unpack(tar: pathlib.Path, folder: pathlib.Path) -> None:
    with tarfile.open(tar) as archive:
        for member in archive:
            name = pathlib.Path(member.name).name
            file = archive.extractfile(member)
            if file and "_" in name:
                (folder / name.split("_")[0]).mkdir(parents=True, exist_ok=True)
                (folder / name.split("_")[0] / name).write_bytes(file.read())


def write_truth(train: pathlib.Path, path: pathlib.Path) -> int:
    """Label and mean RGB of every image, for the checks; returns how many there are."""
    labels, means = [], []
    for label, folder in enumerate(sorted(train.iterdir())):
        for file in sorted(folder.iterdir()):
            with Image.open(file) as image:
                means.append(np.asarray(image.convert("RGB")).mean((0, 1)))
            labels.append(label)
    np.savez(path, label=labels, mean=means)
    return len(labels)


def form_of(file: str, pipeline: str, form: str, scratch: pathlib.Path, ffcv_python: str) -> str:
    """Where the data lie as a pipeline of input_pipeline_<file>.py wants them; made if need be."""
    folder = scratch / "folder"
    if file == "peers":
        return str(folder / "train")
    if pipeline == "folder":
        return str(folder)
    path = scratch / f"{file}-{form}"
    if not path.exists():
        part = scratch / "part"
        remove(part)
        if file == "ffcv":
            write_for_ffcv(ffcv_python, folder / "train", form, part)
        else:
            prepare(folder, part, *FORMS[form])
        part.rename(path)
    return str(path)


def remove(path: pathlib.Path) -> None:
    """Removes a file or folder, or what is left of it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_for_ffcv(python: str, folder: pathlib.Path, form: str, output: pathlib.Path) -> None:
    """Runs FFCV's own writer."""
    script = str(pathlib.Path(__file__).parent / "input_pipeline_ffcv.py")
    command = [python, script, "write", str(folder), form, str(output)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def prepare(*args: str | pathlib.Path) -> None:
    """Runs `lbsgd prepare`."""
    command = [sys.executable, "-m", "lbsgd.main", "prepare", *map(str, args)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def make_small_examples(scratch: pathlib.Path) -> pathlib.Path:
    """A packed set as long as ImageNet's, of random raw images 8 x 8; returns its folder."""
    folder = scratch / "small"
    if not folder.exists():
        arrays, part = scratch / "small-npz", scratch / "part"
        remove(part)
        arrays.mkdir(exist_ok=True)
        random = np.random.default_rng(0)
        for split, count in (("train", SMALL_EXAMPLES), ("validation", 100)):
            images = random.integers(0, 256, (count, 8, 8, 3), np.uint8)
            np.savez(arrays / f"{split}.npz", images=images, labels=np.arange(count) % 100)
        prepare(arrays, part)
        part.rename(folder)
        remove(arrays)
    return folder
