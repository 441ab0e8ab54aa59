"""What SECURITY.md promises: no data are run, none are read or written outside their folders."""

import ast
import io
import json
import os
import pathlib
import stat
import subprocess
import sys
import tarfile

import pytest
from hanging import HANG_SECONDS
from image_files import below, contents, encoded, picture, tree, write
from test_fuzz_inputs import fuzz, refusal
from tfds_datasets import data_config

from lbsgd.data import command, prepare
from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.packed import reader
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.data.sources.folder import FolderSource
from lbsgd.run.config import default_config
from lbsgd.run.record.metrics import MetricsFile
from lbsgd.run.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[2]
IMAGE = encoded(picture(0))

# Modules that run what they read, or write where what they read says.
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MODULES |= {"yaml", "runpy", "code", "imp", "commands"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"system", "popen", "getoutput", "getstatusoutput", "extract", "extractall", "mktemp"}
METHODS |= {"unpack_archive", "import_module", "chmod", "umask", "load_module", "exec_module"}


def dangers(code: str) -> list[str]:
    """What of that a file does, with its lines."""
    found = []
    tree = ast.parse(code)
    # A module that the file itself names, such as one that may be missing.
    named = {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "importlib.import_module"
        and all(isinstance(arg, ast.Constant) for arg in node.args)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            found += [f"{node.lineno}: {a.name}" for a in node.names if a.name in METHODS]
        elif isinstance(node, ast.Name) and node.id in CALLS:
            found.append(f"{node.lineno}: {node.id}")
        elif isinstance(node, ast.Attribute) and node.attr in METHODS and node not in named:
            if node.attr != "popen" or ast.unparse(node.value) == "os":
                found.append(f"{node.lineno}: {node.attr}")
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
            found += [f"{node.lineno}: {node.arg}"] * (ast.unparse(node.value) != "False")
        found += [f"{node.lineno}: {name}" for name in names if name.split(".")[0] in MODULES]
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import load",
        "import os.path, joblib.numpy_pickle",
        "eval('1')",
        "run = exec",
        "import os; os.system('true')",
        "from os import system",
        "subprocess.run('true', shell=True)",
        "subprocess.run('true', shell=wanted)",
        "np.load(path, allow_pickle=True)",
        "tar.extractall(folder)",
        "tar.extract(member)",
        "shutil.unpack_archive(path)",
        "importlib.import_module(name)",
        "tempfile.mktemp()",
        "os.umask(0)",
    ],
)
def test_a_danger_would_be_found(code):
    assert dangers(code)


@pytest.mark.parametrize(
    "code",
    [
        "np.load(p, allow_pickle=False)",
        "re.compile('x')",
        "x.eval()",
        "importlib.import_module('torch')",
    ],
)
def test_what_is_none_is_not(code):
    assert not dangers(code)


def test_nothing_unpickles_evaluates_extracts_or_calls_a_shell():
    files = [*ROOT.glob("lbsgd/**/*.py"), *ROOT.glob("configs/*.py"), *ROOT.glob("launch/**/*.py")]
    assert len(files) > 40
    found = {str(path.relative_to(ROOT)): dangers(path.read_text()) for path in files}
    # A config is a program that the user runs; `recipes.sibling` runs the one beside it.
    for path in ("lbsgd/run/config_file.py", "lbsgd/run/recipes.py"):
        [runs] = found.pop(path)
        assert runs.endswith(": runpy")
    # What a config names as "package.module:name".
    [imports] = found.pop("lbsgd/config/dotted.py")
    assert imports.endswith(": import_module")
    # Its own modules, from a table.
    [own] = found.pop("lbsgd/use/__init__.py")
    assert own.endswith(": import_module")
    assert not {path: what for path, what in found.items() if what}


def member(name: str, data: bytes = IMAGE, **values) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def pack(path: pathlib.Path, *members: tuple[tarfile.TarInfo, bytes]) -> pathlib.Path:
    """A tar of these, and good ones besides."""
    good = [member(f"train/{name}", data) for name, data in tree(2).items()]
    with tarfile.open(path, "w") as tar:
        for info, data in [*good, *members]:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def all_files(folder: pathlib.Path) -> set[pathlib.Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


OUTSIDE = ["../x/evil.jpg", "../../../../x/evil.jpg", "train/../../x/evil.jpg", "/tmp/x/evil.jpg",
           "//x/evil.jpg", "train/cat/../../../evil.jpg", "./../x/evil.jpg"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_members_of_a_tar_that_lead_out_of_it_write_nothing_there(tmp_path, name):
    """Nothing is unpacked: names are names, and no path is made of them."""
    inner = tmp_path / "a/b/c"
    inner.mkdir(parents=True)
    path = pack(inner / "x.tar", member(name))
    before = all_files(tmp_path)
    assert command.main([str(path), str(inner / "out"), "--split", "train"]) == 0
    new = all_files(tmp_path) - before
    assert new
    assert all(file.parent == inner / "out" / "train" for file in new)
    assert not pathlib.Path("/tmp/x/evil.jpg").exists()


LINKS = {
    "symlink": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "symlink up": {"type": tarfile.SYMTYPE, "linkname": "../../../../etc/passwd"},
    "hardlink": {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
    "device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "disk": {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0},
    "pipe": {"type": tarfile.FIFOTYPE},
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_or_device_in_a_tar_is_refused(tmp_path, kind):
    path = pack(tmp_path / "x.tar", member("train/cat/evil.jpg", b"", **LINKS[kind]))
    line = refusal(lambda: prepare.open_input(path, None))
    assert "train/cat/evil.jpg is a link, a device or sparse" in line


def with_size(path: pathlib.Path, number: bytes) -> None:
    """Says of the second member that it has so many bytes, with a good checksum."""
    with tarfile.open(path) as tar:
        at = tar.getmembers()[1].offset
    data = bytearray(path.read_bytes())
    header = data[at : at + 512]
    header[124:136] = number
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data[at : at + 512] = header
    path.write_bytes(data)


@pytest.mark.parametrize(
    "number",
    [
        b"\xff" * 10 + b"\xfe\0",  # -512: the next member is this one, for ever
        b"77777777777\0",
        *(
            pytest.param(number, marks=pytest.mark.long)
            for number in (
                b"\xff" * 10 + b"\xfc\0",  # -1024
                b"\x80" + b"\x7f" * 11,
                b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7,
            )
        ),
    ],
    ids=repr,
)
def test_a_member_of_a_size_that_cannot_be_is_refused(tmp_path, number):
    path = pack(tmp_path / "x.tar")
    with_size(path, number)
    code = (
        "import sys, pathlib; from lbsgd.data.command import main; "
        "sys.exit(main([sys.argv[1], sys.argv[2]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_names_cannot_speak_to_the_terminal(tmp_path):
    """A name may have any byte but 0: clearing the screen, ending the line."""
    name = "cat/\x1b[2J\x1b]0;x\x07\nlbsgd: done.jpg"
    source = FolderSource(write(tmp_path, {name: IMAGE, "dog/0.jpg": IMAGE}))
    assert all(source.name(i).isprintable() for i in range(len(source)))


def folder_config(root: pathlib.Path):
    config = default_config().data
    config.update({"source": "folder", "dir": str(root), "crop": "inception"})
    return config


def test_links_in_a_folder_are_followed_as_users_want(tmp_path):
    """To the images, or the folder of a class, on another disk: SECURITY.md says so."""
    write(tmp_path / "disk", tree(2))
    write(tmp_path / "set", below("train", tree(1)) | below("val", tree(1)))
    (tmp_path / "set/train/more").symlink_to(tmp_path / "disk/cat")
    (tmp_path / "set/train/cat/9.jpg").symlink_to(tmp_path / "disk/cat/1.jpg")
    train = build_sources(folder_config(tmp_path / "set")).train
    assert "more" in train.classes
    assert sum(name == "more" for _, name in contents(train)) == 2


def test_a_link_that_leads_in_a_circle_is_refused(tmp_path):
    write(tmp_path, below("train", tree(1)) | below("val", tree(1)))
    for name in ("a", "b"):  # two of them double the paths at every turn
        (tmp_path / "train/cat" / name).symlink_to("..")
    line = refusal(lambda: build_sources(folder_config(tmp_path)))
    assert "links back to a folder around it; remove the link" in line


def test_what_has_no_end_is_corrupt(tmp_path):
    write(tmp_path, tree(1))
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    (tmp_path / "cat/zero.jpg").symlink_to("/dev/zero")
    with (tmp_path / "cat/huge.jpg").open("wb") as file:
        file.truncate(2 * 10**9)
    source = FolderSource(tmp_path)
    names = [source.name(i).rpartition("/")[2] for i in range(len(source))]
    for name, says in {
        "pipe.jpg": "not a regular", "zero.jpg": "not a regular", "huge.jpg": "2,000,000,000 bytes"
    }.items():  # fmt: skip
        with pytest.raises(CorruptError, match=says):
            source[names.index(name)]


def features(folder: pathlib.Path, change) -> None:
    path = folder / "features.json"
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_features_that_name_another_class_are_not_imported(pets, tmp_path, monkeypatch, key):
    """As tensorflow-datasets would: a module beside the data, or any that is installed."""
    (tmp_path / "evil_module.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def name_another(values) -> None:
        image = values["featuresDict"]["features"]["image"]
        image.pop("pythonClassName")
        image[key] = "evil_module.Image"

    features(pets, name_another)
    for act in (
        lambda: build_sources(data_config(pets)),
        lambda: prepare.open_input(pets, None),
    ):
        refusal(act)
        assert "evil_module" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_features_below_a_data_dir_are_looked_at_too(pets, tmp_path):
    version = tmp_path / "data/pets/1.2.3"
    version.parent.mkdir(parents=True)
    pets.rename(version)
    assert build_sources(data_config(tmp_path / "data"))
    features(version, lambda values: values.update(pythonClassName="os.path.X"))
    line = refusal(lambda: build_sources(data_config(tmp_path / "data")))
    assert "names the class 'os.path.X', which does not belong to tensorflow-datasets" in line


@pytest.mark.parametrize(
    "count", [25, pytest.param(1000, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_a_damaged_dataset_of_tfds_is_read_or_refused(pets, count):
    seen = fuzz("tfds", pets, count)
    assert min(seen["read"], seen["refused"], seen["CorruptError"])


def modes(folder: pathlib.Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*")]
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in paths
        if not path.is_symlink()
    }


def check_modes(folder: pathlib.Path, umask: int) -> None:
    found = modes(folder)
    assert len(found) > 3
    for name, mode in found.items():
        whole = 0o777 if (folder / name).is_dir() else 0o666
        assert mode == whole & ~umask, (name, oct(mode))


@pytest.fixture(params=[0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_packed_set_has_the_permissions_of_its_user(tmp_path, umask):
    images = write(tmp_path / "images", below("train", tree(2)) | below("val", tree(1)))
    assert command.main([str(images), str(tmp_path / "out")]) == 0
    check_modes(tmp_path / "out", umask)


def test_the_files_of_a_workdir_have_the_permissions_of_its_user(tmp_path, umask):
    folder = Workdir(tmp_path / "run")
    folder.claim({"a": 1}, {}, {}).close()
    metrics = MetricsFile(folder.metrics)
    metrics.write(1, 0.1, {"train_loss": 1.0})
    metrics.close()
    corrupt = CorruptExamples("skip", 3)
    corrupt.log_to(folder.corrupt)
    corrupt.note("x.jpg", CorruptError("cut short"))
    check_modes(folder.path, umask)


@pytest.mark.long
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_a_run_leaves_files_with_the_permissions_of_its_user(tmp_path, umask):
    """Checkpoints, logs, summaries and curves too, which libraries write."""
    changes = {"model.width": 0.25, "total_epochs": 0, "total_steps": 3}
    changes |= {"learning_rate.warmup_epochs": 0.1}
    done = subprocess.run(
        [sys.executable, "-m", "lbsgd.main", "--config=configs/digits.py",
         f"--workdir={tmp_path / 'run'}", *(f"--config.{k}={v}" for k, v in changes.items())],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, umask=umask, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints/3").is_dir()
    check_modes(tmp_path / "run", umask)


def test_a_packed_set_is_read_within_its_folder(tmp_path):
    """Where the index of one set names a shard of another."""
    images = write(tmp_path / "images", below("train", tree(2)) | below("val", tree(1)))
    for name in ("a", "b"):
        assert command.main([str(images), str(tmp_path / name)]) == 0
    path = tmp_path / "a/train" / reader.INDEX
    values = json.loads(path.read_bytes())
    for start in ("../../b/train/", f"{tmp_path}/b/train/"):
        values["shards"][0]["file"] = f"{start}shard-00000.array_record"
        path.write_text(json.dumps(values))
        assert "is damaged" in refusal(lambda: reader.PackedSource(tmp_path / "a/train"))
