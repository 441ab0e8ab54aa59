"""What benchmarks/gpu.py gives a piece of its work to do, and where the results of it go.

python gpu_job.py COMMIT    prints what there is: JAX's device, the machine, versions, the commit
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
MACHINE = "machine.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """One piece, which runs in a process of its own.

    Attributes:
      part: of the benchmark.
      out: folder of the results; gpu.py has put `MACHINE` there.
      scratch: folder of what is needed no more once all is done.
      data: folder with `cifar10` and `imagenet`, in a form that `find` finds; "" for none.
      trial: whether sizes are tiny and the CPU stands in for the GPU.
      began, ends: seconds since 1970; it is ended when `ends` comes.
    """

    part: str
    out: str
    scratch: str
    data: str
    trial: bool
    began: float
    ends: float

    @property
    def left(self) -> float:
        """Seconds until it is ended."""
        return self.ends - time.time()

    def find(self, name: str, *archives: str) -> pathlib.Path | None:
        """A set in the folder of the data: `name` itself, or an archive; None where neither is.

        Args:
          name: of a folder, which may go on after ".", "_" or "-" where it has one archive in it.
          archives: the suffixes of those that will do, as ".tar".
        """
        for path in sorted(pathlib.Path(self.data).glob(f"{name}*")) if self.data else ():
            if not re.fullmatch(rf"{re.escape(name)}([._-].*)?", path.name):
                continue  # cifar100 is not cifar10
            within = [path, *path.glob("*")]
            found = [file for file in within if file.suffix in archives and file.is_file()]
            if len(found) == 1:
                return found[0]
            if path.name == name:
                return path
        return None

    def put(self, what: str, n: int, **values: object) -> None:
        """Writes a result, for whatever comes after it may fail.

        Args:
          what: was measured.
          n: how many times.
        """
        machine = json.loads(pathlib.Path(self.out, MACHINE).read_text())
        machine |= values.pop("machine", {})
        line = {"part": self.part, "what": what, "n": n, **values}
        line |= {"seconds": round(time.time() - self.began, 1), "trial": self.trial}
        with pathlib.Path(self.out, f"{self.part}.jsonl").open("a") as file:
            file.write(json.dumps(line | {"machine": machine}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(json.dumps(line), flush=True)


def given() -> tuple[Job, list[str]]:
    """The job, from argv[1], and the arguments after it."""
    return Job(**json.loads(sys.argv[1])), sys.argv[2:]


def xla_flags(more: str) -> str:
    """Those in the environment and more, which is not empty: XLA takes spaces for a file's name."""
    return f"{os.environ.get('XLA_FLAGS', '')} {more}".strip()


def check_backend(job: Job, backend: str) -> None:
    """Raises RuntimeError for the CPU in the GPU's place, with which JAX goes on in silence."""
    if backend == "cpu" and not job.trial:
        raise RuntimeError("JAX has gone on with the CPU: the GPU cannot be opened")


def describe(commit: str) -> dict[str, object]:
    """`measured_on`, with the driver and the memory of the device.

    Args:
      commit: of the code, where that is known better than by the git around it.
    """
    import jax
    from provenance import measured_on

    machine = measured_on()
    device = jax.devices()[0]
    machine["git_commit"] = commit or machine["git_commit"]
    machine["platform_version"] = " ".join(device.client.platform_version.split())
    machine["device_bytes"] = (device.memory_stats() or {}).get("bytes_limit")
    return machine


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1])))
