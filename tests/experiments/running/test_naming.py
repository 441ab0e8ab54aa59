"""Names of a sweep and its rows for services."""

import pytest
from tiny_sweep import ROWS, write_sweep

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.running.jobs import seed_run
from lbsgd.experiments.running.naming import sweep_name
from lbsgd.experiments.sweep import read_sweep


@pytest.fixture
def options_of(tmp_path):
    def options_of(rows):
        sweep = read_sweep(write_sweep(tmp_path / "tiny.py", rows))
        run = seed_run(sweep, SweepFolder(tmp_path), sweep.rows[0], 0)
        return run.config.log.sink_options.to_dict()

    return options_of


@pytest.mark.parametrize(
    ("file", "name"), [("configs/a/table.py", "table"), ("table.py:mini", "table:mini")]
)
def test_a_sweep_is_named_by_its_file_and_variant(file, name):
    assert sweep_name(file) == name


def test_runs_without_services_have_no_options(options_of):
    assert options_of(ROWS) == {}
    assert options_of({"x": {"log.sinks": ("tensorboard",)}}) == {}


def test_wandb_has_the_sweep_as_group_and_the_row_as_tag(options_of):
    found = options_of({"kn=32, slow": {"log.sinks": ("wandb",)}})
    expected = {"group": "tiny", "tags": ("kn=32, slow",), "name": "kn=32, slow seed 0"}
    assert found == {"wandb": expected}


def test_mlflow_has_the_sweep_as_experiment(options_of):
    found = options_of({"kn=32": {"log.sinks": ("tensorboard", "mlflow")}})
    tags = {"sweep": "tiny", "row": "kn=32", "run": "seed 0"}
    expected = {"experiment": "tiny", "tags": tags, "run_name": "kn=32 seed 0"}
    assert found == {"mlflow": expected}


def test_what_the_config_says_stays(options_of):
    mine = {"wandb": {"group": "mine", "project": "p"}, "tensorboard": {}}
    row = {"log.sinks": ("wandb", "tensorboard"), "log.sink_options": mine}
    found = options_of({"kn=32": row})
    assert found["wandb"]["group"] == "mine"
    assert found["wandb"]["project"] == "p"
    assert found["wandb"]["tags"] == ("kn=32",)
    assert found["tensorboard"] == {}


def test_a_long_name_is_cut_to_what_a_tag_may_be(options_of):
    found = options_of({"x" * 100: {"log.sinks": ("wandb",)}})
    assert found["wandb"]["tags"] == ("x" * 64,)
