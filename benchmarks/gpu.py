"""Measures and checks lbsgd on one GPU, in a few minutes.

    python benchmarks/gpu.py all --minutes 10 --data DIR --out OUT
    python benchmarks/gpu.py check step [...]     some parts alone, which then have all the minutes
    python benchmarks/gpu.py report OUT [OUT...]  writes docs/results/gpu.json of it
    python benchmarks/gpu.py table                prints the tables from it

    check    the run is the CPU's; placements, resumption, whether it is bitwise repeatable
    step     images/s, MFU and memory of an update, beside plain Flax and PyTorch; accumulation
    profile  time and bytes of its operations; what the loop around it costs
    train    CIFAR-10 with small and large minibatches: error, images/s, the wait for data
    input    the loader by number of threads, beside PyTorch's

DIR has `cifar10` (what `lbsgd prepare` reads or writes, or train.npz and test.npz of JPEGs:
`jpeg`, the bytes of all, `offsets`, `labels`), `cifar10.zip` or `cifar10.tar` (class folders in
train/ and val/), and `imagenet` (class folders of JPEGs) or `imagenet.tar` (of JPEGs named
<class>_<anything>). An archive may lie in a folder `cifar10_...` or `imagenet_...` too; parts
without their data say so. No network is needed. Each piece is a process with a limit of its own,
the most worth first; one that fails or hangs costs no other, and what it had measured is in OUT
already, a line of JSON each.

Exit codes: 0 done, 1 a piece failed or had not the time it needed, 2 no GPU, or a mistake.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import gpu_report
from gpu_job import MACHINE, ROOT, Job, xla_flags

HERE = pathlib.Path(__file__).parent
# From being told to end until it is ended.
GRACE_SECONDS = 5
PROBE_SECONDS = 90


class Piece(NamedTuple):
    """A part of a part, measured in one process.

    Attributes:
      script: in this folder.
      seconds: that it may take where others want time too; alone it has all there is.
      least: with fewer it is not begun. The first of each part has as many kept for it.
      graphs: whether XLA may launch kernels together, in CUDA graphs: those do not say of which
        operation they are.
    """

    part: str
    script: str
    arguments: tuple[str, ...]
    seconds: float
    least: float = 45
    graphs: bool = True

    @property
    def name(self) -> str:
        """For people."""
        kind = self.script.removeprefix("gpu_").removesuffix(".py")
        return " ".join((kind, *self.arguments))


def _step(network: str, pixels: int, batch: int, worker: int, seconds: float) -> Piece:
    case = (network, str(pixels), str(batch), str(worker), "bfloat16")
    return Piece("step", "gpu_step.py", case, seconds)


def _loop(launched: str) -> Piece:
    case = ("cifar_resnet20", "32", "128", "32", "bfloat16", launched)
    return Piece("profile", "gpu_loop.py", case, 45, 30, graphs=launched == "graphs")


RESNET50 = ("resnet50", "224", "256", "32", "bfloat16")
# In the order of worth.
PIECES = (
    Piece("check", "gpu_check.py", (), 120),
    _step("resnet50", 224, 256, 32, 110),
    Piece("step", "gpu_step_torch.py", ("256", "224"), 90),
    Piece("profile", "gpu_profile.py", RESNET50, 80, graphs=False),
    _step("cifar_resnet20", 32, 1024, 32, 60),
    Piece("step", "gpu_accumulation.py", RESNET50, 90),
    _step("resnet50", 224, 256, 256, 90),
    Piece("train", "gpu_train.py", (), 150, 100),
    Piece("input", "gpu_input.py", (), 90),
    _loop("graphs"),
    _loop("kernels"),
    _step("resnet50", 224, 512, 32, 90),
    _step("resnet50", 224, 512, 512, 90),
)
PARTS = tuple(dict.fromkeys(piece.part for piece in PIECES))


def firsts(pieces: Sequence[Piece]) -> list[Piece]:
    """The first piece of each part."""
    return list({piece.part: piece for piece in reversed(pieces)}.values())


def share(pieces: Sequence[Piece], number: int, left: float) -> float:
    """Seconds that a piece may take when so many are left for it and those after it.

    What it is planned to take, or its share of what is left, where that is more; but what the
    parts after it need at least is kept for them, except from the first piece of its own part.
    """
    piece, whole = pieces[number], sum(later.seconds for later in pieces[number:])
    first = firsts(pieces)
    free = left - sum(later.least for later in pieces[number + 1 :] if later in first)
    free = max(free, piece.least) if piece in first else free
    return min(left, free, max(piece.seconds, left * piece.seconds / whole))


def environment(part: str, trial: bool, scratch: str, graphs: bool = True) -> dict[str, str]:
    """Makes the environment of a piece; all share what is compiled."""
    platform = "cpu" if trial or part == "input" else "cuda,cpu"
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    defaults = {
        "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(scratch, "cache")),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
    }
    own = {"JAX_PLATFORMS": platform, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if not graphs:
        own["XLA_FLAGS"] = xla_flags("--xla_gpu_enable_command_buffer=")
    own["TMPDIR"] = scratch  # what a piece that is killed leaves goes with it
    return {**defaults, **os.environ, **own, "PYTHONUNBUFFERED": "1"}


def fail(message: str) -> NoReturn:
    """Ends this process for a mistake, or for what is not there."""
    print(f"benchmarks/gpu.py: {message}", file=sys.stderr)
    sys.exit(2)


def find_machine(args: argparse.Namespace, scratch: str) -> dict[str, object]:
    """Describes the machine to measure on; ends this process where there is no GPU."""
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / "gpu_job.py"), args.commit],
            env=environment("", args.cpu_trial, scratch),
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        fail(f"JAX has not opened a device within {PROBE_SECONDS} s")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["?"])[-1]
        fail(f"no GPU that JAX can use ({why}); --cpu_trial tries the benchmark out without one")
    machine = json.loads(done.stdout.splitlines()[-1])
    if machine["backend"] == "cpu" and not args.cpu_trial:  # JAX passes over what it does not find
        fail("no GPU that JAX can use; --cpu_trial tries the benchmark out without one")
    return machine


def end_group(process: subprocess.Popen) -> None:
    """Ends a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_piece(piece: Piece, job: Job, log_path: pathlib.Path) -> dict[str, object]:
    """Runs one, and says how it ended."""
    command = [sys.executable, str(HERE / piece.script), json.dumps(vars(job)), *piece.arguments]
    with log_path.open("a") as log:
        print(f"== {piece.name}, {job.left:.0f} s at most", file=log, flush=True)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(piece.part, job.trial, job.scratch, piece.graphs),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ended = True
    try:
        process.wait(job.left)
    except subprocess.TimeoutExpired:
        ended = False
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    finally:
        end_group(process)
    outcome = {"piece": piece.name, "exit_code": process.returncode if ended else None}
    outcome |= {"in_time": ended, "seconds": round(time.time() - job.began, 1)}
    if not ended or process.returncode:
        outcome["last"] = log_path.read_text(errors="replace").strip().splitlines()[-3:]
    return outcome


def measure(args: argparse.Namespace, pieces: Sequence[Piece] = PIECES) -> bool:
    """Runs the pieces of the parts that are asked for; returns whether all went well."""
    start = time.time()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    wanted = [piece for piece in pieces if "all" in args.what or piece.part in args.what]
    fine = True
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or stack.enter_context(
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        )
        scratch = str(pathlib.Path(scratch).resolve())
        pathlib.Path(scratch).mkdir(parents=True, exist_ok=True)
        (out / MACHINE).write_text(json.dumps(find_machine(args, scratch)) + "\n")
        for number, piece in enumerate(wanted):
            left = start + 60 * args.minutes - GRACE_SECONDS - time.time()
            limit = share(wanted, number, left)
            if limit < min(piece.least, 60 * args.minutes / 2):
                outcome = {"piece": piece.name, "skipped": "no time left"}
            else:
                now = time.time()
                data = str(args.data.resolve()) if args.data else ""
                job = Job(piece.part, str(out), scratch, data, args.cpu_trial, now, now + limit)
                outcome = run_piece(piece, job, out / "log.txt")
            fine = fine and outcome.get("exit_code") == 0
            with (out / "pieces.jsonl").open("a") as file:
                file.write(json.dumps(outcome) + "\n")
            print(json.dumps(outcome), flush=True)
    return fine


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks/gpu.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="+", help=f"all, or some of {', '.join(PARTS)}; report OUT...; table")
    add("--minutes", type=float, default=10.0, help="the time for everything")
    add("--data", type=pathlib.Path, help="folder with cifar10 and imagenet")
    add("--out", type=pathlib.Path, default=pathlib.Path("gpu-out"), help="folder of the results")
    add("--scratch", help="folder for what is compiled and decoded, kept; by default none")
    add("--commit", default="", help="the commit of the code, for a copy without git")
    add("--cpu_trial", action="store_true", help="tiny sizes on the CPU, to try this out")
    args = parser.parse_args(argv)
    if args.what[0] not in ("report", "table"):
        unknown = [part for part in args.what if part not in (*PARTS, "all")]
        if unknown:
            parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)} and all")
    elif (args.what[0] == "table") != (len(args.what) == 1):
        parser.error("report takes folders of results, table nothing")
    if args.data and not args.data.is_dir():
        parser.error(f"--data {args.data} is no folder")
    return args


def main(argv: Sequence[str]) -> int:
    """Does what is asked; returns the exit code."""
    args = parse(argv)
    if args.what[0] == "report":
        try:
            gpu_report.write([pathlib.Path(folder) for folder in args.what[1:]])
        except ValueError as error:
            fail(str(error))
    if args.what[0] in ("report", "table"):
        print(table())
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and ends its piece
    fine = measure(args)
    print("\n" + gpu_report.tables(gpu_report.collect([args.out])))
    return 0 if fine else 1


def table() -> str:
    """The tables of docs/results/gpu.json, as Markdown."""
    return gpu_report.table()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
