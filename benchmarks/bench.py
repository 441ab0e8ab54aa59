"""Runs all benchmarks that this machine can, and keeps the tables of the documents to the results.

    python benchmarks/bench.py run                    one after the other; `make bench`
    python benchmarks/bench.py run step scaling       some of them
    python benchmarks/bench.py table                  writes the tables into the documents
    python benchmarks/bench.py check                  ends with 1 where a document has another table

A table stands in a document between the lines `<!-- table: NAME -->` and `<!-- end of table -->`.
NAME is a benchmark's or a sweep's: what benchmarks/NAME.py makes of its results, or the table of
docs/results/NAME.json. A benchmark that needs more than a machine with CPUs is named, and skipped.
"""

import importlib
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
HERE, RESULTS = ROOT / "benchmarks", ROOT / "docs" / "results"
# What those need that do not run everywhere, and how they are started.
NEEDS = {
    "input_pipeline": "a set of JPEGs: input_pipeline.py run --data PATH",
    "resampling": "a tar of JPEGs: resampling.py run TAR",
    "gpu": "an NVIDIA GPU: gpu.py all --minutes 9 --data DIR --out OUT, then gpu.py report OUT",
}
# They take the longest.
LAST = ("rounding", "torture")
END = "<!-- end of table -->"
PATTERN = re.compile(rf"<!-- table: ([\w-]+) -->\n\n(.*?)\n\n{END}", re.DOTALL)


def names():
    """Lists the benchmarks with a table, in the order they run."""
    others = [path for path in HERE.glob("*.py") if path.name != pathlib.Path(__file__).name]
    found = [p.stem for p in others if f"benchmarks/{p.name} table" in p.read_text()]
    return sorted(found, key=lambda name: (name in LAST, name))


def run(*chosen):
    """Measures all that can be, or those that are chosen; one that fails costs no other."""
    known, failed = names(), []
    unknown = set(chosen) - set(known)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for name in chosen or known:
        if name in NEEDS:
            print(f"== {name}: skipped, needs {NEEDS[name]}", flush=True)
            continue
        print(f"== {name}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), "run"], cwd=ROOT)
        took = (time.monotonic() - start) / 60
        print(f"== {name}: exit code {done.returncode}, {took:.1f} minutes", flush=True)
        failed += [name] if done.returncode else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def table_of(name):
    """Makes what is to stand between the markers of a name.

    Raises:
      ValueError: there is no such benchmark, and no such sweep.
    """
    if name in names():
        return importlib.import_module(name).table()
    if not (RESULTS / f"{name}.json").exists():
        raise ValueError(f"no benchmark and no results {name!r}")
    from lbsgd.experiments import load
    from lbsgd.experiments.table import markdown

    return markdown(load(RESULTS / f"{name}.json"))


def documents():
    """Lists the Markdown files that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def marked():
    """Lists the tables that documents have: (file, name, what stands there) of each.

    Raises:
      ValueError: a marker without the other, or without empty lines around the table.
    """
    found = []
    for path in documents():
        text = path.read_text()
        tables = PATTERN.findall(text)
        if {text.count(marker) for marker in ("<!-- table: ", END)} != {len(tables)}:
            raise ValueError(f"{path}: markers of tables are not in pairs")
        found += [(path, name, there) for name, there in tables]
    return found


def differing():
    """Lists the tables that are not what the results give, as (file, name)."""
    return [(path, name) for path, name, text in marked() if text != table_of(name)]


def with_table(text, name):
    """Puts the table of a name between its markers in a text."""
    new = f"<!-- table: {name} -->\n\n{table_of(name)}\n\n{END}"
    return PATTERN.sub(lambda found: new if found[1] == name else found[0], text)


def table():
    """Writes each table into its documents; says which have changed."""
    for path, name in differing():
        path.write_text(with_table(path.read_text(), name))
        print(f"{path.relative_to(ROOT)}: {name}")


def check():
    """Ends with 1 where a table of a document is not that of the results."""
    wrong = [f"{path.relative_to(ROOT)} has another table of {name}" for path, name in differing()]
    if wrong:
        sys.exit("\n".join([*wrong, "python benchmarks/bench.py table mends it"]))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    match sys.argv[1:]:
        case ["run", *chosen]:
            run(*chosen)
        case ["table"]:
            table()
        case ["check"]:
            check()
        case _:
            sys.exit(__doc__)
