"""Images are read as evaluation reads them; those that cannot be are named, the rest predicted."""

import io
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import lbsgd
from lbsgd.data.interface import Interface
from lbsgd.data.pipeline import Loader, load_job
from lbsgd.data.sources.folder import FolderSource
from lbsgd.main import main
from lbsgd.system.errors import ConfigError
from lbsgd.use import find_images
from lbsgd.use.model import Model
from lbsgd.use.reading import each_image, read_image, read_images

CROPPED = Interface((24, 32, 3), 40, (0.5,), (0.5,), ("a", "b"))
WHOLE = Interface((24, 32, 3), 0, (0.5,), (0.5,), ("a", "b"))
GREY = Interface((8, 8, 1), 0, (0.5,), (0.5,), ("a", "b"))


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    """Images of several sizes and kinds, in folders of two classes."""
    rng = np.random.default_rng(1)
    for i, (kind, size) in enumerate([("jpg", (50, 41)), ("png", (64, 100)), ("jpg", (40, 90))]):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        small = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size[::-1]).save(folder / f"{i}.{kind}")
    return tmp_path


def test_files_are_read_as_evaluation_reads_them(photos):
    source = FolderSource(photos)
    index = np.arange(3)
    job = Loader(source, CROPPED.view()).job(index * 0, index, np.ones(3, bool))
    evaluated = load_job(job)["image"]
    paths = [photos / source.name(i).split("/", 1)[1] for i in range(3)]
    for size in (1, 2, 5):
        batches = list(read_images(paths, CROPPED, size, threads=2))
        assert [len(batch) for batch in batches] == {1: [1, 1, 1], 2: [2, 1], 5: [3]}[size]
        found = [read for batch in batches for read in batch]
        assert [read.name for read in found] == list(map(str, paths))
        np.testing.assert_array_equal(np.stack([read.pixels for read in found]), evaluated)
    # Pixels as those of the file that has them without loss.
    pixels = np.asarray(Image.open(paths[2]))
    np.testing.assert_array_equal(read_image(pixels, 0, CROPPED).pixels, evaluated[2])


def test_grey_files_are_for_grey_networks_too(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([pixels, pixels, pixels + 1], -1)).save(tmp_path / "red.png")
    for image in (tmp_path / "grey.png", pixels, pixels[..., None]):
        np.testing.assert_array_equal(read_image(image, 0, GREY).pixels[..., 0], pixels)
    problem = read_image(tmp_path / "red.png", 0, GREY).problem
    assert problem == "it has colours, and the network takes grey images"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
def test_an_image_of_pillow_is_converted_as_its_file(tmp_path, mode):
    random = np.random.default_rng(3)
    pixels = random.integers(0, 255, (24, 32, 3), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65535, (24, 32), np.uint16))
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    from_file = read_image(path, 0, WHOLE).pixels
    assert from_file is not None
    with Image.open(path) as opened:
        for given in (image, opened):
            np.testing.assert_array_equal(read_image(given, 0, WHOLE).pixels, from_file)


def test_grey_pixels_have_three_equal_channels_where_the_network_takes_three(tmp_path):
    pixels = np.random.default_rng(4).integers(0, 255, (30, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    from_file = read_image(tmp_path / "grey.png", 0, CROPPED).pixels
    for given in (pixels, pixels[..., None]):
        np.testing.assert_array_equal(read_image(given, 0, CROPPED).pixels, from_file)


def test_one_image_is_taken_alone_and_several_in_a_list():
    grey, colour = np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)
    opened = Image.fromarray(colour)
    for one in (grey, colour, opened, "x.png", pathlib.Path("x.png")):
        assert [id(x) for x in each_image(one)] == [id(one)]
        assert [id(x) for x in each_image(iter([one, one]))] == [id(one)] * 2
    assert len(list(each_image(np.zeros((5, 4, 4, 3), np.uint8)))) == 5
    for wrong, says in (
        (3, "an image is a path, an array .* or several of them, not int"),
        (b"PNG", "or several of them, not bytes"),
        (None, "or several of them, not NoneType"),
        ([colour, [1, 2]], "image 1: an image is a path, .* or an image of Pillow, not list"),
        ([io.BytesIO()], "image 0: .*, not BytesIO"),
    ):
        with pytest.raises(ConfigError, match=says):
            list(each_image(wrong))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            np.zeros((24, 31, 3), np.uint8),
            "it has the shape 24x31x3, and the network takes whole images of 24x32x3",
        ),
        (np.zeros((24, 32, 4), np.uint8), "it has 4 channels, and the network takes 3"),
        (np.zeros((24, 32, 3)), "pixels must be uint8 [h, w, c], not float64 (24, 32, 3)"),
        (np.zeros((0, 32, 3), np.uint8), "pixels must be uint8 [h, w, c], not uint8 (0, 32, 3)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "pixels must be uint8 [h, w, c], not uint8 (2, 4, 4,"
         " 3)"),
        ("nowhere.png", "cannot be read (No such file or directory)"),
        (os.devnull, "is not a regular file"),
        (__file__, "not an image that can be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(image, says):
    read = read_image(image, 3, WHOLE)
    assert (read.pixels, read.problem) == (None, says)
    assert read.name == ("image 3" if isinstance(image, np.ndarray) else image)


def test_images_are_found_by_files_folders_and_patterns(photos):
    (photos / "a" / "deep").mkdir()
    (photos / "a" / "deep" / "x.PNG").write_bytes(b"")
    (photos / "a" / ".hidden.png").write_bytes(b"")
    (photos / "a" / "notes.txt").write_bytes(b"")
    (photos / "empty").mkdir()
    a, b = photos / "a", photos / "b"
    assert find_images([str(a)]) == [str(a / "0.jpg"), str(a / "2.jpg"), str(a / "deep" / "x.PNG")]
    assert find_images([str(photos / "*" / "*.jpg")]) == [str(a / "0.jpg"), str(a / "2.jpg")]
    assert find_images([str(b / "1.png"), "none.png"]) == [str(b / "1.png"), "none.png"]
    with pytest.raises(ConfigError, match="empty holds no images; what is read ends in"):
        find_images([str(photos / "empty")])
    with pytest.raises(ConfigError, match="there is nothing like"):
        find_images([str(photos / "*.gif")])


def test_predictions_are_the_largest_probabilities(finished, digits):
    model = lbsgd.load(finished, devices=1)
    probabilities = model.probabilities(digits[0][:5])
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=0, atol=1e-5)
    logits = model(digits[0][:5]).astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, softmax, rtol=0, atol=1e-6)
    predicted = model.predict(digits[0][:5], 3, batch_size=2)
    for found, of in zip(predicted, softmax):
        assert [p.label for p in found] == np.argsort(-of)[:3].tolist()
        assert [p.name for p in found] == [str(p.label) for p in found]
        np.testing.assert_allclose([p.probability for p in found], np.sort(of)[:-4:-1], atol=1e-6)


def test_of_equals_the_lower_label_comes_first_and_outputs_past_the_classes_are_none(
    finished, digits
):
    """Predicts by a network whose ten outputs are all 0, and four of them classes."""
    model = lbsgd.load(finished, devices=1)
    variables = jax.tree.map(np.zeros_like, model.variables)
    few = model.interface._replace(classes=("a", "b", "c", "d"))
    blank = Model(model.network, variables, few, model.config, 12, devices=1)
    (found,) = blank.predict(digits[0][:1], 5)
    assert [(p.name, p.label) for p in found] == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
    np.testing.assert_allclose([p.probability for p in found], 0.1, rtol=1e-6)


def test_a_file_that_cannot_be_read_is_named(finished, files):
    model = lbsgd.load(finished, devices=1)
    paths = [next(files.glob("7/*")), files / "none.png", next(files.glob("0/*"))]
    with pytest.raises(ConfigError, match=r"none\.png: cannot be read \(No such file"):
        model.predict(paths)
    found = list(model.predict_each(paths, 1))
    assert [bool(one.problem) for one in found] == [False, True, False]
    assert [len(one.predictions) for one in found] == [1, 0, 1]
    # Those after it are predicted as themselves.
    with Image.open(paths[0]) as opened:
        (as_file,), (as_image,) = model.predict([paths[0], opened], 1)
    assert as_image == as_file
    for one, ((alone,),) in ((found[i], model.predict(paths[i], 1)) for i in (0, 2)):
        assert one.predictions[0].label == alone.label
        assert one.predictions[0].probability == pytest.approx(alone.probability, abs=1e-6)
    with pytest.raises(ConfigError, match="top and batch_size must be at least 1, not 0 and 64"):
        model.predict(paths, 0)


def test_the_command_goes_on_after_an_unreadable_image(finished, files, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = str(next(files.glob("3/*")))
    words = ["predict", str(finished), str(bad), good, "--top", "2", "--config.devices=1"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert err == f"lbsgd: {bad}: not an image that can be read\n"
    assert out.startswith(f"{good}  ")
    assert (out.count("\n"), out.count("%")) == (1, 2)
    assert main([*words, "--json"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"image": str(bad), "error": "not an image that can be read"}
    (predicted,) = lbsgd.load(finished, devices=1).predict(good, 2)
    assert [one["label"] for one in second["predictions"]] == [p.label for p in predicted]
    assert main(["predict", str(finished), good, "--config.devices=1"]) == 0
    assert main(["predict", str(tmp_path), good]) == 2
    assert "there are no checkpoints in" in capsys.readouterr().err
