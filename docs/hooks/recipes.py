"""Writes the list of recipes from what their files say of themselves."""

import os
import pathlib

from outside import ROOT

from lbsgd.config.command import read_recipe


def page() -> str:
    """Writes what each recipe says, and its variants; sweeps come last."""
    folder = ROOT / "configs"
    paths = [*sorted(folder.glob("*.py")), *sorted(folder.glob("ablations/*.py"))]
    return "\n\n".join(_entry(path) for path in paths)


def _entry(path: pathlib.Path) -> str:
    recipe = read_recipe(path)
    name = path.relative_to(ROOT).as_posix()
    title, _, rest = recipe.docstring.partition("\n\n")
    parts = [f"## {name} {{ #{path.stem} }}", " ".join(title.split())]
    if rest:
        parts.append(f"```text\n{rest.rstrip()}\n```")
    if recipe.variants:
        shapes = (
            f"`:{word}...`" if word.endswith("=") else f"`:{word}`" for word in recipe.variants
        )
        parts.append(f"Variants: {', '.join(shapes)}")
    link = os.path.relpath(path, ROOT / "docs" / "reference")
    return "\n\n".join([*parts, f"[The file]({pathlib.PurePath(link).as_posix()})"])
