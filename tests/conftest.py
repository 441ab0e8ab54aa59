"""Eight CPU devices, strict promotion, one compilation cache, shapes checked."""

import contextlib
import os
import pathlib
import signal
import time

import jax
import jaxtyping
import psutil
import pytest
from hypothesis import settings

ROOT = pathlib.Path(__file__).parent.parent

# Subprocesses that tests start share the cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The rooms that compute with arrays: what their signatures say of types and shapes is checked, in
# this process; a training has no need of beartype, and is not slowed down by it. Before anything of
# these is imported.
CHECKED = (
    "lbsgd.step",
    "lbsgd.workers",
    "lbsgd.optim",
    "lbsgd.models",
    "lbsgd.tasks",
    "lbsgd.schedule.functions",
    "lbsgd.diagnostics.workers_gradient",
    "lbsgd.diagnostics.noise_scale",
)
# A whole number will do for a float, as it does for the type checker.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook(CHECKED, CHECKER)
# No example has a time limit: a machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# What a shell has the commands ignore that it starts with nohup or in the background.
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
# A process that was killed may not be gone at once.
GRACE_SECONDS = 20
# In the environment of all that the tests of this process start.
_OF_THESE_TESTS = ("LBSGD_TESTED_BY", f"{os.getpid()}-{time.time_ns()}")
os.environ.update([_OF_THESE_TESTS])


@pytest.fixture(scope="session", autouse=True)
def signals_are_heeded():
    """What tests start heeds signals that the tests themselves were started to ignore.

    A process inherits what is ignored, but no handler: here one that does nothing.
    """
    ignored = [number for number in _IGNORED if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def _started_by(module: str) -> list[tuple[psutil.Process, str]]:
    """The processes that tests of a module have started and that are still there, and by which."""
    found = []
    for process in psutil.process_iter():
        # Of others it may not be known, and one may end as it is looked at.
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            test = environment.get("PYTEST_CURRENT_TEST", "")
            ours = environment.get(_OF_THESE_TESTS[0]) == _OF_THESE_TESTS[1]
            # multiprocessing's is there once for all, and ends with this process.
            tracker = any("resource_tracker" in part for part in process.cmdline())
            if ours and not tracker and test.startswith(f"{module}::"):
                found.append((process, test))
    return found


@pytest.fixture(scope="module", autouse=True)
def leaves_no_process(request):
    """Fails a module whose tests leave processes to others, and ends those."""
    yield
    give_up = time.monotonic() + GRACE_SECONDS
    while (left := _started_by(request.node.nodeid)) and time.monotonic() < give_up:
        time.sleep(0.1)
    for process, _ in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    whose = ", ".join(sorted({test for _, test in left}))
    assert not left, f"left to other tests: {len(left)} processes of {whose}"


@pytest.fixture
def x64():
    """64-bit types within a test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
