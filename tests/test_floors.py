"""Imports lead down the floors that docs/design.md prints, and there are no circles."""

import ast
import copy
import pathlib

import pytest
from house import House, imported_names, printed_floors, upward

ROOT = pathlib.Path(__file__).parents[1]
MOST_ENTRIES = 20
FLOORS = printed_floors((ROOT / "docs/design.md").read_text())
# Of tests that are of no one room.
NO_ROOMS = {"configs"}


@pytest.fixture(scope="module")
def house():
    return House()


def test_every_entry_has_a_floor_and_every_floor_is_there(house):
    assert FLOORS.keys() == house.entries


def test_root_is_small_enough_to_be_read(house):
    assert len(house.entries) <= MOST_ENTRIES


def test_imports_lead_to_floors_below(house):
    assert upward(house, FLOORS) == []


def test_package_itself_imports_nothing(house):
    assert house.imports("") == set()


def test_no_folder_has_a_circle(house):
    assert house.circles() == {}


def test_tests_mirror_the_package(house):
    folders = {p.name for p in (ROOT / "tests").iterdir() if any(p.glob("**/test_*.py"))}
    assert folders - {"tests"} <= house.entries | NO_ROOMS


def turned_round(house, module, line):
    """The house with one more import."""
    changed = copy.copy(house)
    text = f"{house.modules[module].read_text()}\n{line}\n"
    changed.trees = {**house.trees, module: ast.parse(text)}
    return changed


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("system.text", "from lbsgd.config.values import check_values"),
        ("schedule.timeline", "import lbsgd.workers.placement"),
        ("data.order", "def f():\n    from lbsgd.tasks.losses import cross_entropy"),
        ("tasks.losses", "from lbsgd import optim"),
        ("checkpoint.store", "from lbsgd.launch import startup"),
        ("run.workdir", "from lbsgd.train import run"),
    ],
)
def test_import_turned_round_is_noticed(house, module, line):
    found = upward(turned_round(house, module, line), FLOORS)
    assert [here for here, _ in found] == [module]


@pytest.mark.parametrize(
    ("module", "line", "folder"),
    [
        ("data.images.decode", "from lbsgd.data import pipeline", "data"),
        ("data.source", "from lbsgd.data.sources import tar", "data"),
        ("workers.collectives.names", "from lbsgd.workers.collectives import allreduce", ""),
    ],
)
def test_circle_within_a_folder_is_noticed(house, module, line, folder):
    circles = turned_round(house, module, line).circles()
    assert (folder or "workers.collectives") in circles


def test_imports_are_found(house):
    """Of each form, so that the tests above cannot pass by finding none."""
    assert {"train", "run.explain", "system.processes"} <= house.imports("main")  # in a function
    assert {"workers.placement", "tasks.build", "models.networks"} <= house.imports("run.plan")
    assert imported_names(ast.parse("import lbsgd.data.order as o")) == {"lbsgd.data.order"}
