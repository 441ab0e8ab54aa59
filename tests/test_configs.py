"""The arguments of configs/imagenet_goyal.py select the paper's rows."""

import math
import pathlib
import runpy

import pytest

from lbsgd.build import build_rate
from lbsgd.config import resolve
from lbsgd.timeline import Timeline

ROOT = pathlib.Path(__file__).parent.parent
GOYAL = runpy.run_path(str(ROOT / "configs" / "imagenet_goyal.py"))["get_config"]

# Argument -> kn, full rate, updates of warmup: Tables 1, 2a, 2b, 2c and Figure 3.
ROWS = {
    "batch=8192": (8192, 3.2, 782),
    "batch=256": (256, 0.1, 0),
    "batch=64": (64, 0.025, 0),
    "batch=65536": (65536, 25.6, 98),
    "warmup=none": (8192, 3.2, 0),
    "warmup=constant": (8192, 3.2, 782),
    "batch=256,rate=0.05": (256, 0.05, 0),
    "rate=0.2": (8192, 0.2 * 32, 782),
    "scaling=none": (8192, 0.1, 782),
    "scaling=sqrt": (8192, 0.1 * math.sqrt(32), 782),
    "gamma=1": (8192, 3.2, 782),
    "model=resnet101": (8192, 3.2, 782),
}


@pytest.mark.parametrize("arg", ROWS)
def test_a_row_has_the_papers_numbers(arg):
    config = resolve(GOYAL(arg))
    batch_size, full, warmup = ROWS[arg]
    timeline = Timeline.constant(1_281_167, config.batch_size)
    rate = build_rate(config, timeline, timeline.update_at_epoch(90.0))
    assert config.batch_size == batch_size
    assert config.worker_batch_size == 32
    assert rate.full == pytest.approx(full, rel=1e-12)
    assert rate.warmup_updates == warmup
    assert config.model.zero_init_residual == (arg != "gamma=1")
    assert config.model.name == ("resnet101" if "101" in arg else "resnet50")
