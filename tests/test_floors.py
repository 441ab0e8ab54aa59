"""A module imports only from floors below its own, and there are no circles."""

import ast
import graphlib
import pathlib

import pytest

import lbsgd

ROOT = pathlib.Path(lbsgd.__file__).parent

# By module, or by package for all else that is in it. Halves are landings within a floor.
FLOORS = {
    "errors": 0,
    "limits": 0,
    "streams": 0,
    "text": 0,
    "command_line": 0.5,
    "paths": 0.5,
    "figures": 0.5,
    "bounds": 0.5,  # of what config lists
    "timeline": 1,
    "times": 1.2,  # converted by the timeline
    "target": 1.2,  # has numbers as they are written, as the timeline has
    "collectives": 1,
    "values": 1.3,  # names the all-reduces there are
    "config": 1.4,
    "recipes": 1.5,  # changes what config lists
    "workers": 1,
    "loops": 1,
    "runtime": 1,
    "startup": 1,
    "workdir": 1,
    "checkpoint": 1,
    "monitor": 1,
    "curves": 1.1,
    "preemption": 1,
    "process_group": 1,
    "process_log": 1,
    "models": 1,
    "optim": 2,
    "data": 2,
    "step": 2.5,  # applies what optim gives
    "accumulation": 3,
    "checks": 3,
    "growth": 2.5,
    "rate": 3,
    "diagnostics.plan": 3,
    "diagnostics.update_statistics": 3,
    "build": 3.5,  # asks accumulation where the config leaves the steps open
    "compilation": 3.7,
    "explain": 3.7,
    "evaluation": 3.7,
    "record": 3.7,
    "log": 3.8,
    "result": 3.9,
    "diagnostics": 3.9,  # but for what build asks of it, above
    "train": 4,
    "main": 5,
    "launch_local": 5,
}


def module_name(path: pathlib.Path) -> str:
    """`lbsgd/data/order.py` -> "data.order", `lbsgd/models/__init__.py` -> "models"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_names(tree: ast.AST) -> set[str]:
    """Dotted names of imports anywhere in a file, within functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written out from lbsgd on"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def longest_module(name: str) -> str:
    """The module that a dotted name is, or is in: "models.roles.Role" -> "models.roles"."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def imports_of(module: str) -> set[str]:
    """The modules of lbsgd that `module` imports."""
    names = imported_names(ast.parse(MODULES[module].read_text()))
    ours = {name.removeprefix("lbsgd.") for name in names if name.startswith("lbsgd.")}
    return {longest_module(name) for name in ours}


def part(module: str) -> str:
    """The entry of `FLOORS` that a module belongs to."""
    while module not in FLOORS and "." in module:
        module = module.rpartition(".")[0]
    return module


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_module_imports_only_from_floors_below(module):
    assert part(module) in FLOORS, "give the new module a floor"
    for imported in imports_of(module):
        here, there = part(module), part(imported)
        if here != there:
            assert FLOORS[there] < FLOORS[here], f"{module} must not import {imported}"


def test_package_itself_imports_nothing():
    assert imports_of("") == set()


def test_there_are_no_circles():
    graph = {module: imports_of(module) for module in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


def test_table_of_floors_is_of_this_tree():
    """No floor is left over from before."""
    assert {part(module) for module in MODULES if module} == FLOORS.keys()


def test_imports_are_found():
    """Of each form, so that the tests above cannot pass by finding none."""
    assert {"errors", "times"} <= imports_of("config")
    assert {"train", "runtime"} <= imports_of("main")  # within a function
    assert {"accumulation", "models.roles", "models"} <= imports_of("build")
    assert imported_names(ast.parse("import lbsgd.data.order as o")) == {"lbsgd.data.order"}
