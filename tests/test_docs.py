"""The documentation is true: its tables come from results, its links lead somewhere."""

import json
import pathlib
import re
import runpy
import tomllib

import pytest

from lbsgd.config.files import find_config
from lbsgd.config.keys import options_key
from lbsgd.experiments import load
from lbsgd.experiments.table import markdown
from lbsgd.run.config import default_config, flatten

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "launch/README.md", "notebooks/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
BENCHMARKS = ["allreduce", "input_pipeline", "noise_scale", "step", "torture"]
BENCHMARKS += ["accumulation", "gpu", "rounding", "resampling", "step_memory", "second_order"]
BENCHMARKS += ["start"]
SWEEPS = ["digits", "fashion_mnist", "goyal_figure1_mini", "goyal_table1_mini", "tutorial"]
SWEEPS += [f"digits_updates_{name}" for name in ("spngd", "lars", "nesterov")]
SWEEPS += ["transfer_backbones", "transfer", "transfer_backbones_n128", "transfer_n128"]
# Whose command lines are argparse's.
OPTIONS = ["input_pipeline", "gpu"]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_tables_are_those_of_the_results(benchmark, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = runpy.run_path(str(ROOT / "benchmarks" / f"{benchmark}.py"))["table"]()
    pages = "\n".join((ROOT / page).read_text() for page in PAGES)
    assert table in pages


@pytest.mark.parametrize("sweep", SWEEPS)
def test_tables_of_sweeps_are_those_of_their_results(sweep):
    results = load(ROOT / "docs" / "results" / f"{sweep}.json")
    pages = "\n".join((ROOT / page).read_text() for page in PAGES)
    assert markdown(results) in pages


@pytest.mark.parametrize(
    ("benchmark", "arguments"),
    [(benchmark, []) for benchmark in BENCHMARKS if benchmark not in OPTIONS]
    + [("rounding", ["run", "more"]), ("rounding", ["table", "more"])],
)
def test_benchmarks_say_how_they_are_used(benchmark, arguments, monkeypatch, capsys):
    path = str(ROOT / "benchmarks" / f"{benchmark}.py")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("sys.argv", [path, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(path, run_name="__main__")
    assert f"benchmarks/{benchmark}.py run" in stop.value.code
    assert f"benchmarks/{benchmark}.py table" in stop.value.code
    assert capsys.readouterr().out == ""


def test_a_benchmark_prints_its_table(monkeypatch, capsys):
    path = str(ROOT / "benchmarks" / "step.py")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("sys.argv", [path, "table"])
    table = runpy.run_path(path, run_name="__main__")["table"]()
    assert capsys.readouterr().out == table + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_exist(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    links = [link for link in links if not link.startswith("http")]
    paths = [(ROOT / page).parent / link for link in links]
    paths += [ROOT / name for name in re.findall(r"`((?:tests|docs|benchmarks)/[\w/.]*)`", text)]
    missing = [str(path) for path in paths if not path.exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_keys_of_the_config_are_known(page):
    known = {key for key, _ in flatten(default_config())}
    found = set(re.findall(r"--config\.([\w.]+)=", (ROOT / page).read_text()))
    assert {options_key(key) or key for key in found} <= known | {"key"}


def test_every_config_is_listed():
    text = (ROOT / "docs/configs.md").read_text()
    for config in ROOT.glob("configs/*.py"):
        assert f"(../configs/{config.name})" in text


def test_configs_that_are_named_are_there():
    """Also in what a config says of itself, as commands name it."""
    texts = [ROOT / page for page in PAGES] + [*ROOT.glob("configs/**/*.py")]
    for path in texts:
        text = path.read_text()
        for name in re.findall(r"--config[ =](\w+)\b(?!:?\.py|/)", text):
            if name.islower():  # FILE stands for any
                find_config(name)
        for name in re.findall(r"lbsgd sweep run (\w+)\b(?!\.py|/)", text):
            if name.islower():
                find_config(name, sweep=True)


def test_every_extra_is_told():
    text = (ROOT / "docs/installation.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra in extras:
        assert f"`{extra}`" in text


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_error_on_cifar10_is_that_of_its_run():
    result = json.loads((ROOT / "docs/results/cifar10.json").read_text())
    last = result["evaluations"][-1]
    text = (ROOT / "configs/cifar10.py").read_text()
    assert f"{last['val_error']:.2f}% error" in text
    assert f"after {last['epoch']:.0f} epochs" in text
    assert f"{last['val_error']:.1f}% error" in (ROOT / "docs/configs.md").read_text()
