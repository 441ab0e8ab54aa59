"""The package installs in silence, with all of its modules and configs, and works where it is."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest
import yaml

import lbsgd

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys, hatchling.build as h; print(getattr(h, sys.argv[1])('dist'))"
# Of the wheel, beside what every distribution has.
CONFIGS = [*ROOT.glob("configs/*.py"), *ROOT.glob("configs/ablations/*.py")]
MODULES = [path for path in ROOT.glob("lbsgd/**/*") if path.suffix not in (".pyc", "")]


def tracked() -> list[str]:
    """The files that git knows, or would at the next commit."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy to build in, for a build leaves its traces."""
    folder = tmp_path_factory.mktemp("project")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(project: pathlib.Path, kind: str) -> pathlib.Path:
    """What pip installs, built as pip has it built; a warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", BUILD, kind],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return project / "dist" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(project):
    return build(project, "build_wheel")


def test_an_editable_installation_is_the_path_of_the_checkout(project):
    with zipfile.ZipFile(build(project, "build_editable")) as wheel:
        [path] = [name for name in wheel.namelist() if ".dist-info/" not in name]
        assert path.endswith(".pth")
        assert wheel.read(path).decode().strip() == str(project)


def test_a_wheel_has_every_module_every_config_the_command_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as files:
        [scripts] = [name for name in files.namelist() if name.endswith("/entry_points.txt")]
        assert files.read(scripts).decode().split() == [
            "[console_scripts]",
            "lbsgd",
            "=",
            "lbsgd.main:run",
        ]
        installed = {name for name in files.namelist() if ".dist-info/" not in name}
        for path in CONFIGS:
            name = f"lbsgd/_configs/{path.relative_to(ROOT / 'configs')}"
            assert files.read(name) == path.read_bytes()
            installed.remove(name)
    assert installed == {str(path.relative_to(ROOT)) for path in MODULES}


def test_a_source_distribution_has_all_there_is(project):
    with tarfile.open(build(project, "build_sdist")) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert names == {*tracked(), "PKG-INFO"}


def test_the_version_is_stated_once():
    """But in headings of the changelog, and where evidence says what it was measured with."""
    stated = re.compile(rf"(?<![\w.=]){re.escape(lbsgd.__version__)}(?![\w.])")
    evidence = re.compile(rf'lbsgd"?:? "?{re.escape(lbsgd.__version__)}')
    found = []
    for name in tracked():
        if name.startswith(("docs/results/", "CHANGELOG.md")) or name.endswith(".png"):
            continue
        text = evidence.sub("", (ROOT / name).read_text(errors="replace"))
        found += [name] * len(stated.findall(text))
    assert found == ["lbsgd/__init__.py"]


def test_the_citation_is_of_this_package_and_its_paper():
    """With what the Citation File Format 1.2 asks for."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    assert found["cff-version"] == "1.2.0"
    assert found["license"] == PROJECT["license"]
    assert found["authors"] == PROJECT["authors"]
    [paper] = found["references"]
    assert {"type", "title", "authors", "year"} <= paper.keys()
    assert paper["authors"][0]["family-names"] == "Goyal"
    assert len(paper["authors"]) == 9


def test_ci_runs_on_the_oldest_and_the_newest_python():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    stated = [text.rpartition(" :: ")[2] for text in PROJECT["classifiers"]]
    versions = [text for text in stated if text.startswith("3.")]
    assert job["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_a_wheel_finds_its_configs_in_an_empty_folder(wheel, tmp_path):
    """Unpacked beside what is installed here, in a process that knows no checkout."""
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()

    def called(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "lbsgd.main", *words],
            cwd=tmp_path / "empty",
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
        )

    listed = called("configs")
    assert listed.returncode == 0, listed.stderr
    names = [paragraph.split("\n")[0] for paragraph in listed.stdout.split("\n\n")]
    known = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in CONFIGS}
    assert set(names) == known
    assert called("configs", "digits").stdout.startswith(f"{tmp_path}/site/lbsgd/_configs/digits")
    rows = called("sweep", "run", "goyal_table1:mini", "--list")
    assert rows.returncode == 0, rows.stderr
    assert "20 runs of 4 rows: 20 to do" in rows.stdout
    unknown = called("train", "--config", "imagenet_goyal:batch=many")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert f"{tmp_path}/site/lbsgd/_configs/imagenet_goyal.py: variant" in unknown.stderr
    assert list((tmp_path / "empty").iterdir()) == []


# --- in an environment of its own ----------------------------------------------------------------

QUICK = ("--config.total_epochs=2", "--config.learning_rate.warmup_epochs=1")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs `lbsgd` as pip installed it, with what it asks for and no more, in an empty folder."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    bin_ = folder / "venv" / "bin"
    # Else pip would find the checkout there, and install nothing.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([bin_ / "pip", "install", "--quiet", wheel], env=kept, check=True)
    (folder / "empty").mkdir()

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [bin_ / "lbsgd", *map(str, words)],
            cwd=folder / "empty",
            env={**kept, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    run.folder = folder / "empty"
    return run


@pytest.fixture(scope="module")
def digits(installed):
    """The workdir of a run of the installed package, of the name that it takes by itself."""
    out = installed("train", "--config", "digits", *QUICK)
    assert "validation error" in out
    workdir = installed.folder / "runs" / "digits"
    assert (workdir / "curves.png").is_file()
    return workdir


@pytest.mark.long
def test_an_installation_trains_digits_and_resumes(installed, digits):
    assert "complete" in installed("train", "--workdir", digits)
    launched = installed(
        *("launch", "--num_processes", 2, "--platform", "cpu", "--"),
        *("--config", "digits", "--workdir", "launched", "--config.total_epochs=0"),
        *("--config.total_steps=2", "--config.learning_rate.warmup=none"),
    )
    assert "validation error" in launched


@pytest.mark.long
def test_an_installation_runs_a_sweep_and_reports_it_without_extras(installed, digits):
    length = ("--config.total_epochs=0.3", "--config.learning_rate.decay=none")
    out = installed(
        *("sweep", "run", "goyal_table1:mini", "--seeds", 1, "--only", "kn=32", "--workdir", "t"),
        *("--config.model.width=0.25", *length),
    )
    assert "report.html is left out: it needs plotly" in out
    assert (installed.folder / "t" / "table.md").is_file()


@pytest.mark.long
def test_an_installation_evaluates(installed, digits):
    lines = map(json.loads, (digits / "metrics.jsonl").read_text().splitlines())
    last = [line["val_error"] for line in lines if "val_error" in line][-1]
    assert f"error {last:.2f}%" in installed("evaluate", digits)


@pytest.mark.long
def test_an_installation_predicts(installed, digits):
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels = load_digits().images[0]
    image = installed.folder / "zero.png"
    Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(image)
    assert "zero.png" in installed("predict", digits, image)


@pytest.mark.long
def test_an_installation_exports(installed, digits):
    installed("export", digits, "exported")
    assert (installed.folder / "exported").exists()
