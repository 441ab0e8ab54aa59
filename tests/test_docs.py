"""The documentation is true: its tables come from results, its links lead somewhere."""

import json
import pathlib
import re
import runpy
import tomllib

import bench
import pytest

from lbsgd.config.files import find_config
from lbsgd.config.keys import options_key
from lbsgd.run.config import default_config, flatten

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "launch/README.md", "notebooks/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
BENCHMARKS = bench.names()
MARKED = bench.marked()
# Results that no table is of: texts quote them.
QUOTED = {"cifar10", "finetune"}
# Whose command lines are argparse's.
OPTIONS = ["input_pipeline", "gpu"]


@pytest.mark.parametrize("name", sorted({name for _, name, _ in MARKED}))
def test_tables_are_those_of_the_results(name):
    expected = bench.table_of(name)
    for path, marked, text in MARKED:
        assert marked != name or text == expected, path


def test_all_results_are_in_the_documents():
    results = {path.stem for path in bench.RESULTS.glob("*.json")}
    assert results - QUOTED == {name for _, name, _ in MARKED}
    assert set(BENCHMARKS) <= results


def test_a_table_that_differs_is_found_and_mended(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"a\n\n<!-- table: step -->\n\n| of before |\n\n{bench.END}\n\nb\n")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "documents", lambda: [page])
    with pytest.raises(SystemExit) as stop:
        bench.check()
    assert "page.md has another table of step" in stop.value.code
    bench.table()
    assert capsys.readouterr().out == "page.md: step\n"
    bench.check()
    assert bench.table_of("step") in page.read_text()
    page.write_text(page.read_text().replace(bench.END, ""))
    with pytest.raises(ValueError, match="markers"):
        bench.check()


def test_benchmarks_run_one_after_the_other_and_none_costs_another(tmp_path, monkeypatch, capfd):
    for name, code in (("fails", "raise SystemExit(3)"), ("fine", "print('measured')")):
        text = f'"""python benchmarks/{name}.py table"""\n{code}\n'
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "gpu.py").write_text('"""python benchmarks/gpu.py table"""\n')
    monkeypatch.setattr(bench, "HERE", tmp_path)
    with pytest.raises(SystemExit) as stop:
        bench.run()
    assert stop.value.code == "failed: fails"
    said = capfd.readouterr().out
    assert "== fails: exit code 3" in said
    assert "measured\n== fine: exit code 0" in said
    assert "== gpu: skipped, needs an NVIDIA GPU" in said
    with pytest.raises(SystemExit) as stop:
        bench.run("none")
    assert stop.value.code == "no benchmark none; there are fails, fine, gpu"


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
