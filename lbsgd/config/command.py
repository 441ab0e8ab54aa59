"""Lists the recipes, each with what it is and its variants; or prints what one says of itself.

    lbsgd configs
    lbsgd configs NAME

They are the files of ./configs, or else of the folder configs beside the package; those of its
folder ablations are sweeps, the papers' tables, for `lbsgd sweep run`. A variant is
selected as in `lbsgd train --config configs/imagenet_goyal.py:batch=256,model=resnet101`.
"""

import ast
import difflib
import os
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from lbsgd.system.command_line import MOST_COLUMNS, Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError
from lbsgd.system.text import one_line, short_repr

_BESIDE_PACKAGE = pathlib.Path(__file__).parents[2] / "configs"
_INDENT = "    "


class Recipe(NamedTuple):
    """Holds what a config file says of itself.

    Attributes:
      path: as --config takes it.
      docstring: "" where it has none.
      variants: the keys of its ROWS, such as "batch=" and "smoke".
    """

    path: pathlib.Path
    docstring: str
    variants: tuple[str, ...]

    @property
    def title(self) -> str:
        """Returns the first paragraph of the docstring, in one line."""
        return " ".join(self.docstring.partition("\n\n")[0].split())


def main(argv: Sequence[str]) -> int:
    """Lists the recipes or prints one, and returns the exit code."""
    parser = Parser("lbsgd configs", __doc__)
    parser.add_argument("name", nargs="?", help="a recipe, as digits or configs/digits.py")
    try:
        name = parser.parse(argv).name
        paths = find_recipes()
        if name:
            print(_whole(read_recipe(_named(name, paths))))
        else:
            print("\n\n".join(_summary(path) for path in paths))
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    return EXIT_DONE


def find_recipes() -> list[pathlib.Path]:
    """Finds the config files there are, by name; sweeps come last.

    Raises:
      ConfigError: there are none.
    """
    for folder in (pathlib.Path("configs"), pathlib.Path(os.path.relpath(_BESIDE_PACKAGE))):
        paths = [*sorted(folder.glob("*.py")), *sorted(folder.glob("ablations/*.py"))]
        if paths:
            return paths
    raise ConfigError(
        f"there are no recipes in ./configs, and none in {_BESIDE_PACKAGE}; call it in a folder "
        "with configs/, as a checkout of lbsgd is"
    )


def read_recipe(path: pathlib.Path) -> Recipe:
    """Reads what a config file says, without running it.

    Raises:
      ConfigError: it is not Python, or cannot be read.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(str(error))}") from error
    return Recipe(path, ast.get_docstring(tree) or "", _variants(tree))


def _variants(tree: ast.Module) -> tuple[str, ...]:
    for node in tree.body:
        names = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and any(getattr(name, "id", "") == "ROWS" for name in names):
            keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
            return tuple(key for key in keys if isinstance(key, str))
    return ()


def _named(name: str, paths: Sequence[pathlib.Path]) -> pathlib.Path:
    stems = {path.stem: path for path in paths}
    stem = pathlib.PurePath(name.partition(":")[0]).name.removesuffix(".py")
    if stem not in stems:
        (near,) = difflib.get_close_matches(stem[:100], stems, 1, 0.0)
        raise ConfigError(
            f"there is no recipe {short_repr(name)} in {paths[0].parent}; the nearest is {near!r}"
        )
    return stems[stem]


def _summary(path: pathlib.Path) -> str:
    """Writes a paragraph of the list; a file that cannot be read does not hide the others."""
    try:
        recipe = read_recipe(path)
    except ConfigError as error:
        return f"{path}\n{_filled(str(error))}"
    parts = [str(path), _filled(recipe.title or "(says nothing of itself)")]
    if recipe.variants:
        parts.append(_filled(_list_of(recipe)))
    return "\n".join(parts)


def _whole(recipe: Recipe) -> str:
    parts = [str(recipe.path), recipe.docstring or "It says nothing of itself."]
    return "\n\n".join(parts + [_list_of(recipe)] * bool(recipe.variants))


def _list_of(recipe: Recipe) -> str:
    shapes = (f":{name}..." if name.endswith("=") else f":{name}" for name in recipe.variants)
    return f"variants: {'  '.join(shapes)}"


def _filled(text: str) -> str:
    return textwrap.fill(
        text,
        MOST_COLUMNS,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
    )
