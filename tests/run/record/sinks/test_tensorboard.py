"""Event files, read back by TensorBoard itself."""

import math
import os
import resource
import subprocess
import sys
import types

import pytest
from buckets import new_bucket
from partial_config import config_with

from lbsgd.run.config import resolve
from lbsgd.run.record.sinks.opening import Sinks
from lbsgd.run.record.sinks.tensorboard import open_sink

# TensorBoard reads without tensorflow, which takes seconds to import, where this is set.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def test_tensorboard_reads_what_was_written_before_it_is_closed(tmp_path):
    sink = open_sink(tmp_path, 0)
    sink(1, {"train_loss": 2.5, "learning_rate": 0.125})
    sink(2, {"train_loss": 1.5})
    sink(2, {"val_loss": 0.5})
    expected = {
        "train_loss": [(1, 2.5), (2, 1.5)],
        "learning_rate": [(1, 0.125)],
        "val_loss": [(2, 0.5)],
    }
    assert scalars(tmp_path) == expected
    sink.close()
    assert scalars(tmp_path) == expected


def test_numbers_that_are_not_finite_are_shown_as_such(tmp_path):
    sink = open_sink(tmp_path, 0)
    sink(1, {"train_loss": math.nan, "gradient_norm": math.inf})
    sink.close()
    shown = scalars(tmp_path)
    assert math.isnan(shown["train_loss"][0][1])
    assert shown["gradient_norm"] == [(1, math.inf)]


@pytest.mark.parametrize("resumed_after", [[0], [2], [2, 2], [2, 3, 1]])
def test_no_step_stands_twice_and_none_is_lost(tmp_path, resumed_after):
    """The last of what each file says of a step counts, as often as the run was killed."""
    expected: dict[int, float] = {}
    for attempt, start in enumerate([0, *resumed_after]):
        sink = open_sink(tmp_path, start)
        expected = {step: value for step, value in expected.items() if step <= start}
        for step in range(start + 1, start + 4):
            sink(step, {"train_loss": 10.0 * attempt + step})
            expected[step] = 10.0 * attempt + step
        sink.close()
    assert scalars(tmp_path) == {"train_loss": sorted(expected.items())}


def test_a_full_disk_ends_the_summaries_and_not_the_run(tmp_path):
    said = []
    config = resolve(config_with(**{"log.sinks": ("tensorboard",)}))
    sinks = Sinks(config, tmp_path, said.append)
    sinks.open(0)
    sinks(1, {"train_loss": 1.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 5, before[1]))
    try:
        # More than any queue would hold.
        for step in range(2, 40):
            sinks(step, {"train_loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sinks.close()
    assert said == [
        "log.sinks='tensorboard': OSError: [Errno 27] File too large; the run continues without it"
    ]
    assert scalars(tmp_path) == {"train_loss": [(1, 1.0)]}


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "s3:no [bucket] é*"
    folder.mkdir()
    sink = open_sink(folder, 0)
    sink(1, {"train_loss": 2.5})
    sink.close()
    assert scalars(folder) == {"train_loss": [(1, 2.5)]}


def test_in_a_bucket_it_is_the_same_file(tmp_path):
    bucket = new_bucket()
    for start in (0, 1):
        sink = open_sink(bucket, start)
        for step in (start + 1, start + 2):
            sink(step, {"train_loss": 10.0 * start + step})
        sink.close()
    (tmp_path / "tensorboard").mkdir()
    for file in (bucket / "tensorboard").iterdir():
        file.download(tmp_path / "tensorboard" / file.name)
    assert scalars(tmp_path) == {"train_loss": [(1, 1.0), (2, 12.0), (3, 13.0)]}


ALONE = """
import pathlib, sys
from lbsgd.run.record.sinks.tensorboard import open_sink
open_sink(pathlib.Path(sys.argv[1]), 0).close()
print(sorted({"torch", "tensorflow", "matplotlib"} & set(sys.modules)))
"""


def test_it_imports_no_framework_and_leaves_none_hidden(tmp_path):
    """Where torch is installed, as here a torch that counts as imported once it is."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("Tensor = float\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", ALONE + "import torch; print(torch.Tensor)", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("[]\n<class 'float'>\n", "")
