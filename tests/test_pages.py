"""What the tutorial and the how-to pages have in Python does what they say."""

import contextlib
import io
import pathlib
import re
import runpy

import pytest
from PIL import Image

from lbsgd.experiments import Settings
from lbsgd.run.config import flatten, resolve

ROOT = pathlib.Path(__file__).parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(page):
    return _BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text())


def run(code, file):
    """Runs a block as if it stood in a file of the repository."""
    names = {"__file__": str(ROOT / file), "__name__": file}
    exec(compile(code, file, "exec"), names)
    return names


def test_the_tutorial_makes_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "make_images.py").write_text(blocks("tutorial")[0])
    runpy.run_path("make_images.py")
    counts = [
        len(list(tmp_path.glob(f"IMAGES/{split}/digit_*/*.png"))) for split in ("train", "val")
    ]
    assert counts == [1437, 360]
    assert len(list((tmp_path / "IMAGES" / "val").iterdir())) == 10
    with Image.open(next(tmp_path.glob("IMAGES/val/digit_3/*.png"))) as image:
        assert image.size == (64, 64)


def test_the_sweep_of_the_tutorial():
    names = run(blocks("tutorial")[1], "configs/my_sweep.py")
    rows = dict(names["sweep"]())
    assert list(rows) == ["kn=32", "kn=256", "kn=256, no warmup"]
    assert names["settings"]() == Settings(
        seeds=3, columns=("batch_size", "learning_rate.warmup"), baseline="kn=32"
    )
    known = dict(flatten(resolve(names["get_config"]())))
    assert {key for row in rows.values() for key in row} <= known.keys()


@pytest.mark.parametrize("page", ["own_images", "reference/configuration"])
def test_a_config_file_of_a_page(page):
    (block,) = blocks(page)
    resolve(run(block, "configs/mine.py")["get_config"]())


def test_the_plan_of_a_page_is_made_without_data_and_devices():
    (block,) = blocks("plan")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run(block, "plan.py")
    first, second = out.getvalue().splitlines()
    # 90 epochs of 50,000 in minibatches of 8,192; 0.1 for 256 makes 3.2, from 0.1 on in 5 epochs.
    assert first == "549 k=256 workers of n=32 = 256 devices x 1 lane x 1 accumulation step"
    assert re.fullmatch(r"\[0\.1, 3\.\d+, 1\.\d+\]", second)
