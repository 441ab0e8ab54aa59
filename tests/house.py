"""Measures the house: how the package is divided, and what leads from where to where.

    python tests/house.py            a table of the tree
    python tests/house.py FOLDER     of another tree's lbsgd/, to compare

`tests/test_floors.py` holds what docs/design.md says of it.
"""

import ast
import collections
import graphlib
import itertools
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "lbsgd"
MOST_LINES_OF_FILE = 400
MOST_LINES_OF_FUNCTION = 60
# Statements that a function needs for its like elsewhere to count.
LEAST_STATEMENTS = 3

# "    4    data/  step/  optim/      which; what; transforms": after two blanks an entry, or words.
_FLOOR = re.compile(r" {4}(\d+) {2,}(\S.*)")
_ENTRY = re.compile(r"(\w+)(?:/|\.py)$")


class House:
    """The modules of a package, by dotted name without the package's own, and their imports."""

    def __init__(self, package: pathlib.Path = PACKAGE) -> None:
        self.package = package
        self.modules = {self._name(path): path for path in sorted(package.rglob("*.py"))}
        self.trees = {name: ast.parse(path.read_text()) for name, path in self.modules.items()}

    def _name(self, path: pathlib.Path) -> str:
        """`lbsgd/data/order.py` -> "data.order", `lbsgd/models/__init__.py` -> "models"."""
        parts = path.relative_to(self.package).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def entries(self) -> set[str]:
        """Files and folders at the root; `__init__` has no name of its own."""
        return {name.split(".")[0] for name in self.modules if name}

    def imports(self, module: str) -> set[str]:
        """The modules of the package that one of them imports."""
        package = self.package.name + "."
        names = imported_names(self.trees[module])
        ours = (name.removeprefix(package) for name in names if name.startswith(package))
        return {self._longest_module(name) for name in ours} - {module}

    def _longest_module(self, name: str) -> str:
        """The module that a dotted name is, or is in: "models.roles.Role" -> "models.roles"."""
        while name not in self.modules:
            name = name.rpartition(".")[0]
        return name

    def arrows(self) -> Iterator[tuple[str, str]]:
        """Pairs of a module and one that it imports."""
        return ((module, to) for module in self.modules for to in self.imports(module))

    def circles(self) -> dict[str, list[str]]:
        """By folder ("" is the root), entries of it that lead to each other in a circle.

        What stands in a folder is taken as one, so that folders make circles as files do.
        """
        graphs: dict[str, dict[str, set[str]]] = collections.defaultdict(dict)
        for here, there in self.arrows():
            for folder, a, b in _meet(here, there):
                graphs[folder].setdefault(a, set()).add(b)
        found = {}
        for folder, graph in graphs.items():
            try:
                graphlib.TopologicalSorter(graph).prepare()
            except graphlib.CycleError as error:
                found[folder] = error.args[1]
        return found


def _meet(here: str, there: str) -> Iterator[tuple[str, str, str]]:
    """The folder where the ways to two modules part, and the entries that they take there.

    A folder's `__init__` is an entry of it, "".
    """
    a, b = here.split("."), there.split(".")
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b))))
    entry_a, entry_b = (parts[shared] if shared < len(parts) else "" for parts in (a, b))
    if entry_a and entry_b:
        yield ".".join(a[:shared]), entry_a, entry_b


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


def printed_floors(page: str) -> dict[str, int]:
    """The floor of each entry at the root, as the table of docs/design.md has it."""
    floors: dict[str, int] = {}
    for line in page.partition("## The floors")[2].partition("\n## ")[0].splitlines():
        row = _FLOOR.match(line)
        if row:
            words = re.split(r" +", row[2])
            named = itertools.takewhile(bool, map(_ENTRY.match, words))
            floors |= {entry[1]: int(row[1]) for entry in named if entry}
    return floors


def upward(house: House, floors: dict[str, int]) -> list[tuple[str, str]]:
    """Imports that do not lead to a floor below: upwards, or to a neighbour."""
    return [
        (here, there)
        for here, there in house.arrows()
        for a, b in [(here.split(".")[0], there.split(".")[0])]
        if here and a != b and not floors.get(b, 0) < floors.get(a, 0)
    ]


class Function(NamedTuple):
    """A function, where it is, and how many lines it has."""

    where: str
    name: str
    lines: int


def functions(house: House) -> Iterator[tuple[Function, ast.FunctionDef]]:
    """All functions and methods."""
    for module, tree in house.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno
                yield Function(module, node.name, node.end_lineno - node.lineno + 1), node


def duplicates(house: House) -> list[list[str]]:
    """Functions that are written more than once: the same statements, whatever they are called."""
    alike: dict[str, list[str]] = collections.defaultdict(list)
    for function, node in functions(house):
        body = [s for s in node.body if not _is_text(s)]
        if sum(isinstance(part, ast.stmt) for s in body for part in ast.walk(s)) > LEAST_STATEMENTS:
            key = ast.dump(ast.Module(body, []))
            alike[key].append(f"{function.where}.{function.name}")
    return [names for names in alike.values() if len(names) > 1]


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def defined_twice(house: House) -> dict[str, list[str]]:
    """Public classes and functions of one name in several modules."""
    where: dict[str, list[str]] = collections.defaultdict(list)
    for module, tree in house.trees.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                where[node.name].append(module)
    return {name: modules for name, modules in where.items() if len(modules) > 1}


def comments_per_100(paths: Iterable[pathlib.Path]) -> float:
    """Lines that are or end in a comment, per hundred lines of code (no blanks, no docstrings)."""
    comments = code = 0
    for path in paths:
        with path.open("rb") as file:
            tokens = list(tokenize.tokenize(file.readline))
        comments += sum(t.type == tokenize.COMMENT for t in tokens)
        skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING)
        lines: set[int] = set()
        for before, token in itertools.pairwise(tokens):
            text = token.type == tokenize.STRING and before.type in (
                *(tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.ENCODING),
            )
            if token.type not in skipped and not text:
                lines |= set(range(token.start[0], token.end[0] + 1))
        code += len(lines)
    return 100 * comments / max(code, 1)


def table(house: House) -> list[str]:
    """The measures, a line each."""
    named = functions(house)
    lines = {m: len(path.read_text().splitlines()) for m, path in house.modules.items()}
    long = sorted(f"{f.where}.{f.name}" for f, _ in named if f.lines > MOST_LINES_OF_FUNCTION)
    large = sorted(module for module, count in lines.items() if count > MOST_LINES_OF_FILE)
    crossing = {
        (a.split(".")[0], b.split(".")[0])
        for a, b in house.arrows()
        if a.split(".")[0] != b.split(".")[0]
    }
    back = {pair for pair in crossing if pair[::-1] in crossing}
    twice = defined_twice(house)
    return [
        f"entries at the root                {len(house.entries)}",
        f"modules, lines                     {len(lines)}, {sum(lines.values()):,}",
        f"arrows between entries             {len(crossing)}",
        f"arrows that also lead back         {len(back)}",
        f"circles, within any folder         {house.circles() or 'none'}",
        f"files over {MOST_LINES_OF_FILE} lines               {large or 'none'}",
        f"functions over {MOST_LINES_OF_FUNCTION} lines            {long or 'none'}",
        f"comments per 100 lines of code     {comments_per_100(house.modules.values()):.1f}",
        f"functions written twice            {duplicates(house) or 'none'}",
        f"public names defined twice         {len(twice)}: {', '.join(sorted(twice))}",
    ]


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE
    print("\n".join(table(House(given))))
