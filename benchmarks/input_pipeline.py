"""Images/s of whole training input pipelines, lbsgd's and its peers', on the same JPEGs.

    python benchmarks/input_pipeline.py run --data PATH [--ffcv_python PATH] [...]
                                           measures and writes docs/results/input_pipeline.json
    python benchmarks/input_pipeline.py table    prints the tables from it

PATH is a folder of class folders of JPEGs, or a tar of JPEGs named <class>_<anything>.JPEG. Every
pipeline delivers the same: batches of 224 x 224 x 3 bytes and their labels in random order, a
random part of each image (8 to 100% of the area, 3/4 to 4/3 as wide as high), resized, half of them
flipped. Each runs in a process of its own, on one core with one worker and on two with two; they
take turns, and are stopped while it is another's; a ratio is of neighbours in time. Before that
each has to show a round of batches of the right shape, labels, colours and variety.

`pip install -e ".[benchmarks]"` installs tensorflow, PyTorch and grain. FFCV wants an environment
of its own; --ffcv_python names its interpreter. Peers that are not installed are named as missing.

Of lbsgd alone: the time to the first batch of a packed set of 1,281,167 small examples, none of it
in memory, and the memory that 20,000 batches of it take.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import NamedTuple

import numpy as np
from input_pipeline_child import Task
from input_pipeline_data import SMALL_EXAMPLES, form_of, lay_out, make_small_examples, write_truth
from provenance import measured_on, provenance

HERE = pathlib.Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "input_pipeline.json"
PACKAGES = (
    "array_record",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "tensorflow",
    "tensorflow-cpu",
    "torch",
)
PEERS = {"tensorflow": "tf.data", "torch": "PyTorch DataLoader", "ffcv": "FFCV"}


class Pipeline(NamedTuple):
    """One that is measured.

    Attributes:
      file: benchmarks/input_pipeline_<file>.py has it.
      name: there.
      form: of the data.
      package: that it needs.
    """

    file: str
    name: str
    form: str
    package: str = ""


PIPELINES = {
    "lbsgd, packed": Pipeline("ours", "packed", "full"),
    "lbsgd, folder": Pipeline("ours", "folder", "full"),
    "grain, threads": Pipeline("ours", "grain threads", "full"),
    "grain, processes": Pipeline("ours", "grain processes", "full"),
    "tf.data": Pipeline("peers", "tf.data", "full", "tensorflow"),
    "tf.data, boxes as the others": Pipeline("peers", "tf.data same boxes", "full", "tensorflow"),
    "PyTorch DataLoader, Pillow": Pipeline("peers", "torch", "full", "torch"),
    "OpenCV by hand": Pipeline("peers", "opencv", "full"),
    "FFCV, files as they are": Pipeline("ffcv", "ffcv", "kept", "ffcv"),
    "lbsgd, encoded anew at quality 90": Pipeline("ours", "packed", "jpeg90"),
    "FFCV, encoded anew at quality 90": Pipeline("ffcv", "ffcv", "jpeg90", "ffcv"),
    "lbsgd, JPEG of at most 400": Pipeline("ours", "packed", "jpeg400"),
    "FFCV, JPEG of at most 400": Pipeline("ffcv", "ffcv", "jpeg400", "ffcv"),
    "lbsgd, raw of at most 400": Pipeline("ours", "packed", "raw400"),
    "FFCV, raw of at most 400": Pipeline("ffcv", "ffcv", "raw400", "ffcv"),
    "lbsgd, JPEG of at most 256": Pipeline("ours", "packed", "jpeg256"),
    "FFCV, JPEG of at most 256": Pipeline("ffcv", "ffcv", "jpeg256", "ffcv"),
}
# Ours that each is compared with.
OURS = {p.form: key for key, p in PIPELINES.items() if p[:2] == ("ours", "packed")}
OURS["kept"] = OURS["full"]
# How much longer a round of a form is: some are fast.
LONGER = {"full": 1, "kept": 1, "jpeg90": 1, "jpeg400": 2, "raw400": 4, "jpeg256": 4}


class Child:
    """A pipeline in a process of its own, which runs only while it is asked something.

    Attributes:
      images: read in a round, but for those at its edges.
      checked: what it says of its batches.
    """

    def __init__(
        self, pipeline: Pipeline, workers: int, args: argparse.Namespace, scratch: pathlib.Path
    ) -> None:
        file, name, form, _ = pipeline
        batches = max(1, round(args.images * workers * LONGER[form] / args.batch_size))
        data = form_of(file, name, form, scratch, args.ffcv_python)
        task = Task(name, data, str(scratch / "truth.npz"), workers, args.batch_size, batches)
        self.images = batches * args.batch_size
        python = args.ffcv_python if file == "ffcv" else sys.executable
        cores = sorted(os.sched_getaffinity(0))[:workers]
        self._log = scratch / f"{file} {name} {form}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    python,
                    str(HERE / f"input_pipeline_{file}.py"),
                    json.dumps(dataclasses.asdict(task)),
                    json.dumps(cores),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            self.checked = self._answer()
        except BaseException:
            self.close()
            raise

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} failed:\n{self._log.read_text()}")
        self._signal(signal.SIGSTOP)
        return json.loads(line)

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def round(self) -> float:
        """Images/s of a round."""
        self._signal(signal.SIGCONT)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self._process.wait()


def measure_rates(args: argparse.Namespace, scratch: pathlib.Path) -> dict[str, object]:
    """Images/s in every round of all pipelines that can run here."""
    missing = missing_peers(args.ffcv_python)
    chosen = {k: p for k, p in PIPELINES.items() if p.package not in missing}
    if args.only:
        chosen = {k: p for k, p in chosen.items() if any(word in k for word in args.only)}
    result = {
        "machine": describe(args.ffcv_python),
        "missing": [PEERS[package] for package in missing],
        "images": write_truth(lay_out(args.data, scratch), scratch / "truth.npz"),
        "batch_size": args.batch_size,
        "checks": {},
        "images_in_a_round": {},
        "rates": {},
    }
    for workers in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
        for key, value in measure_with(workers, chosen, args, scratch).items():
            result[key][str(workers)] = value
    return result


def measure_with(
    workers: int, chosen: dict[str, Pipeline], args: argparse.Namespace, scratch: pathlib.Path
) -> dict[str, dict[str, object]]:
    """Checks, images in a round and images/s in every round of each, with so many workers.

    Args:
      args: of it `images`, `batch_size`, `rounds` and `ffcv_python`.
      scratch: where `lay_out` and `write_truth` have been.
    """
    with contextlib.ExitStack() as stack:
        children = {}
        for key, pipeline in chosen.items():
            children[key] = Child(pipeline, workers, args, scratch)
            stack.callback(children[key].close)
            print(workers, key, children[key].checked, file=sys.stderr, flush=True)
        return {
            "checks": {key: child.checked for key, child in children.items()},
            "images_in_a_round": {key: child.images for key, child in children.items()},
            "rates": take_turns(children, args.rounds),
        }


def take_turns(children: dict[str, Child], rounds: int) -> dict[str, list[float]]:
    """Images/s of each in every round, after one to warm up."""
    rates = {key: [] for key in children}
    for number in range(rounds + 1):
        for key, child in children.items():
            rate = child.round()
            if number:
                rates[key].append(rate)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return rates


def missing_peers(ffcv_python: str) -> list[str]:
    """The packages that are not installed."""
    here = [package for package in ("tensorflow", "torch") if not importlib.util.find_spec(package)]
    return here if ffcv_python else [*here, "ffcv"]


def describe(ffcv_python: str = "") -> dict[str, object]:
    """`measured_on`, with the versions of all peers."""
    there = measured_on()
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            there["packages"][name] = metadata.version(name)
    if ffcv_python:
        code = "import importlib.metadata as m; print(m.version('ffcv'))"
        done = subprocess.run([ffcv_python, "-c", code], check=True, capture_output=True, text=True)
        there["packages"]["ffcv"] = done.stdout.strip()
    return there


def ask_ours(measurement: str, folder: pathlib.Path) -> object:
    """What input_pipeline_ours.py measures in a fresh process."""
    command = [sys.executable, str(HERE / "input_pipeline_ours.py"), measurement, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(args: argparse.Namespace) -> None:
    """Measures the parts asked for, and writes each as soon as it is done."""
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or stack.enter_context(tempfile.TemporaryDirectory())
        scratch = pathlib.Path(scratch).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        results = json.loads(args.results.read_text()) if args.results.exists() else {}
        for part in args.parts:
            if part == "rates":
                results[part] = measure_rates(args, scratch)
            else:
                folder = make_small_examples(scratch)
                times = args.rounds if part == "first_batch" else 1
                measured = [ask_ours(part, folder) for _ in range(times)]
                results[part] = {"machine": describe(), "measured": measured}
            args.results.parent.mkdir(exist_ok=True)
            args.results.write_text(json.dumps(results, indent=1) + "\n")


def spread(values: list[float], digits: int = 0) -> str:
    """The median and the range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table() -> str:
    """What docs/results/input_pipeline.json says."""
    return tables(json.loads(RESULTS.read_text()))


def tables(results: dict[str, object]) -> str:
    """The rates and their ratios, the first batch and the memory, as Markdown."""
    parts = {"rates": rates_table, "first_batch": first_batch_line, "memory": memory_line}
    return "\n\n".join(parts[part](results[part]) for part in parts if part in results)


def rates_table(result: dict[str, object]) -> str:
    """Median images/s (range), ours over it in the same rounds, and how it scales."""
    rates = result["rates"]
    head, rule = "| pipeline |", "|---|"
    for workers in rates:
        head += f" images/s, {workers} core{'s' * (workers != '1')} | lbsgd / it |"
        rule += "---|---|"
    lines = [head + (" 2 cores / 1 |" if "2" in rates else "")]
    lines.append(rule + "---|" * ("2" in rates))
    for key in rates["1"]:
        cells = [key]
        for there in rates.values():
            ours = OURS[PIPELINES[key].form]
            compared = ours in there and ours != key
            ratios = [a / b for a, b in zip(there[ours], there[key])] if compared else []
            cells += [spread(there[key]), spread(ratios, 2) if ratios else ""]
        if "2" in rates:
            one, two = (statistics.median(rates[workers][key]) for workers in ("1", "2"))
            cells.append(f"{two / one:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", _conditions(result)]
    return "\n".join(lines)


def _conditions(result: dict[str, object]) -> str:
    rates, packages = result["rates"]["1"], result["machine"]["packages"]
    rounds = len(next(iter(rates.values())))
    return (
        f"{result['images']} images, batches of {result['batch_size']}; median (range) of {rounds} "
        f"rounds. {provenance(result['machine'], packages=packages)} "
        f"Not installed: {', '.join(result['missing']) or 'none'}."
    )


def first_batch_line(result: dict[str, object]) -> str:
    """Seconds to open the set, and to the first batch."""
    opened, first = ([m[key] for m in result["measured"]] for key in ("open", "first_batch"))
    return (
        f"A packed set of {SMALL_EXAMPLES:,} examples, none of it in memory: open after "
        f"{spread(opened, 2)} s without imports, the first batch (kn=256, k=32) after "
        f"{spread(first, 2)} s."
    )


def memory_line(result: dict[str, object]) -> str:
    """Resident memory over the batches, after the first thousand."""
    (measured,) = result["measured"]
    batches, mib = measured["batches"], measured["mib"]
    slope = np.polyfit(np.array(batches) / 1000, mib, 1)[0]
    return (
        f"Memory over {batches[-1]:,} batches of it: {mib[0]:,.1f} MiB after {batches[0]:,}, "
        f"{mib[-1]:,.1f} MiB at the end; {slope:+.3f} MiB per 1,000 batches."
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument(
        "--data", type=pathlib.Path, help="the images that `rates` loads: class folders, or a tar"
    )
    parser.add_argument("--ffcv_python", default="", help="an interpreter that has FFCV")
    parser.add_argument("--scratch", help="a folder for the forms of the data, kept; default none")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--images", type=int, default=1024, help="how many images a core loads in a round"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--only", nargs="+", help="pipelines with one of these in their name")
    parts = ("rates", "first_batch", "memory")
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    if args.command == "run" and "rates" in args.parts and not args.data:
        parser.error("--data is needed: a folder of class folders, or a tar")
    return args


if __name__ == "__main__":
    args = parse()
    if args.command == "run":
        run(args)
    print(tables(json.loads(args.results.read_text())))
