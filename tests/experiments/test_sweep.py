"""A sweep is read from a config file; what is wrong with it is said in one line."""

import re

import pytest

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.settings import Settings
from lbsgd.experiments.sweep import Row, read_sweep
from lbsgd.system.errors import ConfigError

CONFIG = """
from lbsgd.experiments import Settings
from lbsgd.run.config import default_config

def get_config(arg=""):
    config = default_config()
    config.batch_size = 64
    config.worker_batch_size = 32
    if arg:
        config.total_epochs = float(arg)
    return config
"""
ROWS = """
def sweep(arg=""):
    yield "kn=32", {"batch_size": 32}
    yield "kn=256, no warmup", {"batch_size": 256, "learning_rate.warmup": "none"}
"""
SETTINGS = """
def settings(arg=""):
    return Settings(seeds=3, columns=("batch_size",), baseline="kn=32")
"""


def written(tmp_path, *parts: str) -> str:
    path = tmp_path / "x.py"
    path.write_text("".join((CONFIG, *parts)))
    return str(path)


def test_rows_settings_and_configs(tmp_path):
    sweep = read_sweep(f"{written(tmp_path, ROWS, SETTINGS)}:7", ["--config.worker_batch_size=16"])
    assert [row.name for row in sweep.rows] == ["kn=32", "kn=256, no warmup"]
    assert sweep.settings == Settings(seeds=3, columns=("batch_size",), baseline="kn=32")
    config = sweep.config(sweep.rows[1], 2)
    found = (config.batch_size, config.worker_batch_size, config.seed, config.total_epochs)
    assert found == (256, 16, 2, 7.0)
    assert config.learning_rate.warmup == "none"
    # Nothing is left behind in the base.
    assert sweep.config(sweep.rows[0], 0).learning_rate.warmup == "gradual"


def test_a_key_that_reaches_no_row_is_a_mistake(tmp_path):
    file = written(tmp_path, ROWS)
    sweep = read_sweep(file, ["--config.learning_rate.warmup=constant"])  # reaches one of two
    warmups = [sweep.config(row, 0).learning_rate.warmup for row in sweep.rows]
    assert warmups == ["constant", "none"]
    with pytest.raises(ConfigError, match="batch_size has no effect: every row sets batch_size"):
        read_sweep(file, ["--config.batch_size=128"])
    with pytest.raises(ConfigError, match=r"seed has no effect: .* --seeds N says how many"):
        read_sweep(file, ["--config.seed=128"])
    tuned = (
        "def settings(arg=''):\n"
        "    return Settings(tune={'optimizer.momentum': (0.0, 1.0, 'linear')})\n"
    )
    with pytest.raises(ConfigError, match="has no effect: optimizer\\.momentum is tuned"):
        read_sweep(written(tmp_path, ROWS, tuned), ["--config.optimizer.momentum=0.5"])


def test_numbers_of_numpy_are_numbers(tmp_path):
    """Of any kind, and wherever they stand: loops over them are how rows are made."""
    rows = """
import numpy as np

def sweep(arg=""):
    for size, rate in zip(2 ** np.arange(5, 7), np.float32([0.5, 0.25])):
        yield f"kn={size}", {
            "batch_size": size,
            "learning_rate.reference_learning_rate": rate,
            "optimizer.nesterov": np.bool_(True),
            "learning_rate.decay_epochs": tuple(np.arange(2.0)),
            "task.options": {"numbers": [np.int64(1)]},
        }

def settings(arg=""):
    return Settings(seeds=np.int64(2), tune={"optimizer.momentum": (np.float32(0.5), 1, "linear")})
"""
    sweep, folder = read_sweep(written(tmp_path, rows)), SweepFolder(tmp_path / "runs")
    config = sweep.config(sweep.rows[1], 0)
    assert (config.batch_size, config.learning_rate.decay_epochs) == (64, (0.0, 1.0))
    assert config.learning_rate.reference_learning_rate == 0.25
    folder.describe(sweep)
    assert folder.read().settings.tune == {"optimizer.momentum": (0.5, 1, "linear")}
    assert folder.read().rows[0].overrides["task.options"] == {"numbers": [1]}


def test_options_are_set_one_by_one_too(tmp_path):
    """As on the command line, those of a sink that the file says nothing of among them."""
    rows = (
        "def sweep(arg=''):\n"
        "    yield 'a', {'log.sinks': ('wandb',), 'log.sink_options.wandb.project': 'x',\n"
        "        'optimizer.name': 'optax:adam', 'optimizer.options.b2': 0.5}\n"
    )
    sweep = read_sweep(written(tmp_path, rows))
    config = sweep.config(sweep.rows[0], 0)
    assert config.log.sink_options.to_dict() == {"wandb": {"project": "x"}}
    assert config.optimizer.options.to_dict() == {"b2": 0.5}
    assert not sweep.base.optimizer.options


def test_settings_may_be_left_out(tmp_path):
    assert read_sweep(written(tmp_path, ROWS)).settings == Settings()


def test_what_is_tuned_stands_in_for_the_row(tmp_path):
    sweep = read_sweep(written(tmp_path, ROWS))
    tuned = {"learning_rate.reference_learning_rate": 0.5, "batch_size": 64}
    config = sweep.config(sweep.rows[0], 1, **tuned)
    assert (config.learning_rate.reference_learning_rate, config.batch_size) == (0.5, 64)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("", "has no sweep"),
        ("def sweep(arg=''):\n    return []\n", "yields no row"),
        ("def sweep(arg=''):\n    yield 'a'\n", "must yield"),
        ("def sweep(arg=''):\n    pass\n", "must yield rows, not return None"),
        (f"{ROWS}\ndef settings(arg=''):\n    return Settings(columns='seed')\n", "is a tuple of"),
        ("def sweep(arg=''):\n    yield '  ', {}\n", "must be words"),
        ("def sweep(arg=''):\n    yield 'a\\nb', {}\n", "must be words in a line"),
        (
            "def sweep(arg=''):\n    yield 'a', {'batch_size': 64}\n    yield 'b', {}\n",
            "rows 'a' and 'b' come to the same config",
        ),
        (
            "def sweep(arg=''):\n    for epochs in (3.0, 4.0):\n        yield f'{epochs}', "
            "{'learning_rate.warmup': 'none', 'learning_rate.warmup_epochs': epochs}\n",
            "rows '3.0' and '4.0' come to the same config",
        ),
        (
            "def sweep(arg=''):\n    yield 'a', {'task.options': {'x': {1}}}\n",
            "row 'a' sets what is",
        ),
        (
            "def sweep(arg=''):\n    yield 'a', {'config.batch_size': 1}\n",
            "unknown config key 'config.batch_size'; leave out 'config.': 'batch_size'",
        ),
        ("def sweep(arg=''):\n    yield 'a', [1]\n", "must be a dict"),
        ("def sweep(arg=''):\n    yield 'a', {}\n    yield 'a', {}\n", "'a' twice"),
        ("def sweep(arg=''):\n    yield 'a', {'seed': 1}\n", "sets the seed"),
        ("def sweep(arg=''):\n    yield 'a', {'batch_sise': 1}\n", "row 'a': unknown .*batch_size"),
        ("def sweep(arg=''):\n    yield 'a', {'batch_size': 'x'}\n", "row 'a': batch_size must"),
        ("def sweep(arg=''):\n    yield 'a', {'batch_size': 0}\n", "row 'a': batch_size"),
        ("def sweep(arg=''):\n    yield 'a', {'data': 3}\n", "row 'a': data is a group"),
        ("def sweep(arg=''):\n    1 / 0\n    yield 'a', {}\n", "line 13: ZeroDivisionError"),
        (f"{ROWS}\ndef settings(arg=''):\n    return 3\n", "must return Settings"),
        (f"{ROWS}\ndef settings(arg=''):\n    return Settings(baseline='b')\n", "row 'b'"),
        (f"{ROWS}\ndef settings(arg=''):\n    return Settings(overlays=(('b',),))\n", "row 'b'"),
        (
            f"{ROWS}\ndef settings(arg=''):\n    return Settings(overlays=('kn=32',))\n",
            "overlays one of tuples of rows",
        ),
        (
            f"{ROWS}\ndef settings(arg=''):\n    return Settings(against='model.name')\n",
            "against='model.name' is no number",
        ),
        (
            f"{ROWS}\ndef settings(arg=''):\n    return Settings(seed=5)\n",
            "Settings has no field 'seed'; the nearest is 'seeds'",
        ),
        (
            f"{ROWS}\ndef settings(arg=''):\n    return Settings(5, tune_pionts=3)\n",
            "Settings has no field 'tune_pionts'; the nearest is 'tune_points'",
        ),
        (
            f"{ROWS}\ndef settings(arg=''):\n"
            "    return Settings(tune={'batch_size': (16, 64, 'log')})\n",
            "row 'kn=32' sets batch_size, which is tuned",
        ),
        (
            f"{ROWS}\ndef settings(arg=''):\n"
            "    return Settings(tune={'task.options.factor': (1.0, 64.0, 'log')})\n",
            "task.options.factor cannot be tuned",
        ),
        (f"{ROWS}\ndef settings(arg=''):\n    return Settings(against='x')\n", "unknown .*'x'"),
        (f"{ROWS}\ndef settings(arg=''):\n    return Settings(seeds=0)\n", "seeds must be"),
        (f"{ROWS}\ndef settings(arg=''):\n    return Settings(tune={{'x': (1, 2)}})\n", "'x'"),
        (
            f"{ROWS}\ndef settings(arg=''):\n    return Settings(tune={{'batch_size': (2, 1)}})\n",
            "batch_size must be tuned in .least, most",
        ),
        (
            f"{ROWS}\ndef settings(arg=''):\n"
            "    return Settings(tune={'optimizer.nesterov': (0.0, 1.0, 'log')})\n",
            "optimizer.nesterov cannot be tuned",
        ),
        (
            f"{ROWS}\ndef settings(arg=''):\n"
            "    return Settings(tune={'batch_size': (2, 1, 'log')})\n",
            "must rise",
        ),
        (
            f"{ROWS}\ndef settings(arg=''):\n"
            "    return Settings(tune={'optimizer.momentum': (0.5, float('inf'), 'log')})\n",
            "must rise and be finite",
        ),
        (f"{ROWS}\ndef settings(arg=''):\n    return Settings(tune=['seed'])\n", "dict of ranges"),
        (
            f"{ROWS}\ndef settings(arg=''):\n"
            "    return Settings(tune={'optimizer.momentum': (0.0, 1.0, 'log')})\n",
            "above 0",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, rows, says):
    with pytest.raises(ConfigError) as caught:
        read_sweep(written(tmp_path, rows))
    assert re.search(says, str(caught.value))
    assert str(tmp_path / "x.py") in str(caught.value) or "row" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["kn=32", "a/b", "a:b", "..", "ä", "A", "a", "x" * 300, "<b>"])
def test_a_folder_for_any_name(name, tmp_path):
    folder = Row(name, {}).folder
    (tmp_path / folder).mkdir()
    assert (tmp_path / folder).resolve().parent == tmp_path.resolve()
    assert len(folder) < 100


@pytest.mark.parametrize("name", ["logs", "sweep.json", "report.html", "table.md", "x.png"])
def test_no_row_takes_the_place_of_something_else(name):
    assert Row(name, {}).folder != name


def test_names_that_are_alike_have_folders_of_their_own():
    names = ["a b", "a_b", "a/b", "A b", "a  b", "a-b", "a", "A"]
    folders = [Row(name, {}).folder.lower() for name in names]
    assert len(set(folders)) == len(names)


def test_the_folder_says_what_the_sweep_is_and_keeps_rows_of_before(tmp_path):
    folder = SweepFolder(tmp_path / "runs")
    assert not folder.is_sweep()
    sweep = read_sweep(written(tmp_path, ROWS, SETTINGS))
    folder.describe(sweep)
    assert folder.read() == (sweep.file, sweep.rows, sweep.settings)
    other = read_sweep(
        written(tmp_path, "\ndef sweep(arg=''):\n    yield 'new', {'data.mean': (0.5,)}\n")
    )
    folder.describe(other)
    assert [row.name for row in folder.read().rows] == ["new", "kn=32", "kn=256, no warmup"]
    assert folder.read().settings == Settings()


def test_what_is_tuned_may_give_an_effect_to_what_rows_set(tmp_path):
    """No roles decay where nothing does: without tuning these rows were one run."""
    rows = (
        "def sweep(arg=''):\n    for role in ('kernel', 'bias'):\n"
        "        yield role, {'optimizer.decayed_roles': (role,), 'batch_size': 32}\n"
    )
    none = ["--config.optimizer.weight_decay=0.0"]
    with pytest.raises(ConfigError, match="rows 'kernel' and 'bias' come to the same config"):
        read_sweep(written(tmp_path, rows), none)
    tuned = (
        "def settings(arg=''):\n"
        "    return Settings(tune={'optimizer.weight_decay': (1e-5, 1e-3, 'log')})\n"
    )
    assert len(read_sweep(written(tmp_path, rows, tuned)).rows) == 2


def test_no_sweep_and_a_damaged_one(tmp_path):
    with pytest.raises(ConfigError, match="holds no sweep"):
        SweepFolder(tmp_path).read()
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        SweepFolder(tmp_path).read()
