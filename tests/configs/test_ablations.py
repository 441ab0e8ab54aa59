"""The papers' tables as sweeps: their rows are those of the papers, and each of them trains."""

import functools
import itertools
import math
import pathlib

import ml_collections
import pytest

from lbsgd import train
from lbsgd.config.files import bundled_configs
from lbsgd.experiments.sweep import Row, Sweep, read_sweep
from lbsgd.run.config import flatten, resolve
from lbsgd.run.config_file import ConfigFile
from lbsgd.run.recipes import set_smoke
from lbsgd.schedule.learning_rate import build_learning_rate
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "ablations"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
# What is of one scale, for 2 CPU cores.
PLAIN = ["digits", "fashion_mnist", "rounding"]
# What is of CIFAR-10, and in small of digits.
TRANSFER = ["transfer", "transfer_backbones"]
# Of one optimizer each, which is tuned.
TUNED = "digits_updates"
SCALED = sorted({*NAMES} - {*PLAIN, *TRANSFER, TUNED})
VARIANTS = ["", ":mini", ":gpu"]
IMAGENET = 1_281_167

# Tables 1, 2a, 2b, 2c and Figure 3 of Goyal et al. 2017: row -> kn, eta, updates of warmup. Of
# warmup there are 5 epochs, where kn is above 256.
TABLES = {
    "goyal_table1": {
        "kn=256": (256, 0.1, 0),
        "kn=8k, no warmup": (8192, 3.2, 0),
        "kn=8k, constant warmup": (8192, 3.2, 782),
        "kn=8k, gradual warmup": (8192, 3.2, 782),
    },
    "goyal_table2a": {
        "kn=256, rate / 2": (256, 0.05, 0),
        "kn=256": (256, 0.1, 0),
        "kn=256, rate x 2": (256, 0.2, 0),
        "kn=8k, linear, rate / 2": (8192, 0.05 * 32, 782),
        "kn=8k, linear": (8192, 0.1 * 32, 782),
        "kn=8k, linear, rate x 2": (8192, 0.2 * 32, 782),
        "kn=8k, not scaled": (8192, 0.1, 782),
        "kn=8k, square root": (8192, 0.1 * math.sqrt(32), 782),
    },
    "goyal_table2b": {
        "kn=256, gamma=1": (256, 0.1, 0),
        "kn=256, gamma=0": (256, 0.1, 0),
        "kn=8k, gamma=1": (8192, 3.2, 782),
        "kn=8k, gamma=0": (8192, 3.2, 782),
    },
    "goyal_table2c": {"kn=256": (256, 0.1, 0), "kn=8k": (8192, 3.2, 782)},
    "goyal_figure1": {
        "kn=64": (64, 0.025, 0),
        "kn=128": (128, 0.05, 0),
        "kn=256": (256, 0.1, 0),
        "kn=512": (512, 0.2, 12_511),
        "kn=1k": (1024, 0.4, 6256),
        "kn=2k": (2048, 0.8, 3128),
        "kn=4k": (4096, 1.6, 1564),
        "kn=8k": (8192, 3.2, 782),
        "kn=16k": (16_384, 6.4, 391),
        "kn=32k": (32_768, 12.8, 195),
        "kn=64k": (65_536, 25.6, 98),
        "kn=128k": (131_072, 51.2, 49),
    },
}


@functools.cache
def sweep_of(name: str, variant: str = "") -> Sweep:
    return read_sweep(f"{FOLDER / name}.py{variant}")


def rows_of(name: str, variant: str = "") -> dict[str, ml_collections.ConfigDict]:
    sweep = sweep_of(name, variant)
    return {row.name: sweep.config(row, seed=0) for row in sweep.rows}


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_those_of_the_paper(name):
    rows = rows_of(name)
    assert list(rows) == list(TABLES[name])
    for row, config in rows.items():
        batch_size, eta, warmup = TABLES[name][row]
        timeline = Timeline.constant(IMAGENET, config.batch_size)
        rate = build_learning_rate(config, timeline, timeline.update_at_epoch(90.0))
        assert config.batch_size == batch_size
        assert config.worker_batch_size == 32
        assert rate.full == pytest.approx(eta, rel=1e-12), row
        assert rate.warmup_updates == warmup, row
        assert config.total_epochs == 90
        assert config.optimizer.nesterov
        assert config.model.zero_init_residual == ("gamma=1" not in row)
        assert config.model.name == ("resnet101" if name == "goyal_table2c" else "resnet50")
        assert config.data.source == "tfds"


def test_warmups_of_table_1_are_three():
    warmups = [config.learning_rate.warmup for config in rows_of("goyal_table1").values()]
    assert warmups[1:] == ["none", "constant", "gradual"]


def test_forms_of_momentum_are_the_papers_equations():
    c = {row: config.optimizer for row, config in rows_of("momentum_forms").items()}
    plain = {row for row, optimizer in c.items() if not optimizer.nesterov}
    inside = {row for row, optimizer in c.items() if optimizer.momentum_form == "rate_inside"}
    wrong = {row for row in inside if not c[row].momentum_correction}
    assert plain == c.keys() - {"Nesterov"}
    assert inside == {row for row in c if "10" in row}
    assert wrong == {row for row in c if "not corrected" in row}
    assert len(inside - wrong) == 1


def test_scopes_of_batch_norm_are_of_so_many_examples():
    """Of one minibatch, which they share out among other workers."""
    rows = rows_of("bn_scope")
    assert {config.batch_size for config in rows.values()} == {8192}
    examples = [c.worker_batch_size * c.batch_norm.synced_workers for c in rows.values()]
    assert examples == [32, 8, 128, 256, 8192]


@pytest.mark.parametrize(("variant", "scaled", "workers"), [("", 32, 256), (":mini", 8, 8)])
def test_remarks_multiply_the_loss_by_what_the_mistake_does(variant, scaled, workers):
    rows = list(rows_of("remarks", variant).items())
    wrong = [(row, config) for row, config in rows if row.startswith("wrong on purpose")]
    assert len(wrong) == 2
    (_, first), (_, third) = wrong
    assert first.task.options.factor == scaled
    assert first.learning_rate.scaling == "none"
    assert third.task.options.factor == workers
    assert third.learning_rate.scaling == "linear"
    assert [config.task.name for row, config in rows if "right" in row] == ["classification"] * 2


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *itertools.product(SCALED, VARIANTS),
        *itertools.product(sorted({*NAMES} & {*TRANSFER}), ["", ":n=128", ":digits"]),
        *((name, "") for name in PLAIN),
        *((TUNED, variant) for variant in ("", ":lars", ":nesterov")),
    ],
)
def test_a_sweep_lists_rows_that_differ(name, variant):
    """In what they compute: no two are one run under two names."""
    rows = rows_of(name, variant)
    assert 2 <= len(rows) <= 12
    configs = [str(config) for config in rows.values()]
    assert len(set(configs)) == len(configs)
    settings = sweep_of(name, variant).settings
    assert settings.seeds == 5
    assert settings.seeds_at_once == (0 if variant == ":gpu" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_that_is_none_is_named(name):
    known = "there are mini and gpu" if name in SCALED else "leave it out"
    if name in TRANSFER:
        known = "there are n=128 and digits, and n=32 without one"
    if name == TUNED:
        known = "there are spngd, lars and nesterov"
    with pytest.raises(ConfigError, match=f"no variant 'nano'; {known}"):
        read_sweep(f"{FOLDER / name}.py:nano")


@pytest.mark.parametrize(
    ("name", "recipes"),
    [
        (
            "digits",
            {
                "kn=256, linear scaling, gradual warmup": "digits.py",
                "kn=1024, LARS": "digits_lars.py",
                "kn=1024, Nesterov, the schedule of LARS": "digits_nesterov.py",
                "kn=128, the rate decays": "digits_growing.py:decay",
                "kn=128 to 1024, the batch grows instead": "digits_growing.py",
            },
        ),
        (
            "fashion_mnist",
            {
                "kn=1024, LARS": "fashion_mnist_lars.py",
                "kn=1024, Nesterov, the schedule of LARS": "fashion_mnist_nesterov.py",
                "kn=1024, SP-NGD": "fashion_mnist_spngd.py",
                "kn=128, the rate decays": "fashion_mnist_growing.py:decay",
                "kn=128 to 3200, the batch grows instead": "fashion_mnist_growing.py",
            },
        ),
    ],
)
def test_a_row_that_is_another_recipe_is_that_recipe(name, recipes):
    rows = rows_of(name)
    for row, recipe in recipes.items():
        expected = resolve(ConfigFile(str(FOLDER.parent / recipe)).config())
        assert dict(flatten(rows[row])) == dict(flatten(expected)), row


def test_they_are_listed_among_the_recipes():
    assert bundled_configs().keys() >= {f"ablations/{name}" for name in NAMES}


# --- two updates of each row ---------------------------------------------------------------------


def shrunk(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The run of a row cut down to two updates of eight workers on random images."""
    of_row = config
    config = ml_collections.ConfigDict(config)
    set_smoke(config)
    config.init_from = ""
    config.model.name = "cifar_resnet8"
    config.data.image_size, config.data.synthetic_classes = 8, 10
    config.total_steps, config.learning_rate.warmup_steps = 2, 1
    config.worker_batch_size = {8: 4, 128: 16}.get(of_row.worker_batch_size, 8)
    config.batch_norm.synced_workers = min(
        of_row.batch_norm.synced_workers, config.batch_size // config.worker_batch_size
    )
    if config.learning_rate.warmup == "none":
        config.learning_rate.warmup_steps = 0
    return resolve(config)


ROWS = [(name, row) for name in NAMES for row in sweep_of(name).rows]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "row"), [pytest.param(name, row, id=f"{name}: {row.name}") for name, row in ROWS]
)
def test_a_row_trains(name: str, row: Row, tmp_path):
    outcome = train.run(shrunk(sweep_of(name).config(row, seed=0)), tmp_path)
    assert (outcome.updates, outcome.complete) == (2, True)
    assert 0 <= outcome.final <= 100
