"""Lists the recipes, each with what it is and its variants; or prints what one says of itself.

    lbsgd configs
    lbsgd configs NAME
    lbsgd configs NAME --copy FILE     a copy to edit, for --config FILE

They are those that lbsgd brings, by name, and the files of ./configs, by path. Those of ablations/
are sweeps, the papers' tables, for `lbsgd sweep run`. A variant is selected as in
`lbsgd train --config imagenet_goyal:batch=256,model=resnet101`.
"""

import ast
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from lbsgd.config.files import bundled_configs, find_config, own_configs
from lbsgd.system.command_line import MOST_COLUMNS, Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError
from lbsgd.system.text import one_line

_INDENT = "    "


class Recipe(NamedTuple):
    """Holds what a config file says of itself.

    Attributes:
      docstring: "" where it has none.
      variants: the keys of its ROWS, such as "batch=" and "smoke".
    """

    docstring: str
    variants: tuple[str, ...]

    @property
    def title(self) -> str:
        """Returns the first paragraph of the docstring, in one line."""
        return " ".join(self.docstring.partition("\n\n")[0].split())


def main(argv: Sequence[str]) -> int:
    """Lists the recipes, prints one or copies it, and returns the exit code."""
    parser = Parser("lbsgd configs", __doc__)
    parser.add_argument(
        "name", nargs="?", metavar="CONFIG", help="a name of the list, or a config file"
    )
    parser.add_argument("--copy", metavar="FILE", help="write a copy of the config file there")
    try:
        flags = parser.parse(argv)
        if flags.copy is not None:
            print(_copy(flags.name, pathlib.Path(flags.copy)))
        elif flags.name:
            print(_whole(_named(flags.name)))
        else:
            print("\n\n".join(_summary(name, path) for name, path in find_recipes().items()))
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    return EXIT_DONE


def find_recipes() -> dict[str, pathlib.Path]:
    """Finds the config files there are, by what --config takes; one's own come first."""
    return {str(path): path for path in own_configs()} | bundled_configs()


def read_recipe(path: pathlib.Path) -> Recipe:
    """Reads what a config file says, without running it.

    Raises:
      ConfigError: it is not Python, or cannot be read.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(str(error))}") from error
    return Recipe(ast.get_docstring(tree) or "", _variants(tree))


def _variants(tree: ast.Module) -> tuple[str, ...]:
    for node in tree.body:
        names = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and any(getattr(name, "id", "") == "ROWS" for name in names):
            keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
            return tuple(key for key in keys if isinstance(key, str))
    return ()


def _named(text: str) -> pathlib.Path:
    """Finds a recipe; a variant does not count."""
    return find_config(text.partition(":")[0])


def _copy(name: str | None, to: pathlib.Path) -> str:
    """Copies a recipe, and returns what to do with the copy.

    Raises:
      ConfigError: there is no such recipe, a file is there already, or it cannot be written.
    """
    if not name:
        raise ConfigError(
            "--copy FILE copies one recipe; name it, as in configs digits --copy x.py"
        )
    recipe = _named(name)
    try:
        content = recipe.read_bytes()
        with to.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise ConfigError(f"{to} is there already; give --copy another name") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{one_line(str(to))} cannot be written ({error})") from error
    return f"{to} is yours to edit; lbsgd takes it as --config {to}"


def _summary(name: str, path: pathlib.Path) -> str:
    """Writes a paragraph of the list; a file that cannot be read does not hide the others."""
    try:
        recipe = read_recipe(path)
    except ConfigError as error:
        return f"{name}\n{_filled(str(error))}"
    parts = [name, _filled(recipe.title or "(says nothing of itself)")]
    if recipe.variants:
        parts.append(_filled(_list_of(recipe)))
    return "\n".join(parts)


def _whole(path: pathlib.Path) -> str:
    recipe = read_recipe(path)
    parts = [str(path), recipe.docstring or "It says nothing of itself."]
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
