"""Brings files outside of docs/ onto the site: those that its pages link to, and no others.

A page links to `../configs/digits.py`, which works wherever the repository is browsed. On the site
the file is a page of its own, below `outside/`: Markdown as it is, and other text as code.
"""

import pathlib
import posixpath
import re
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = "outside"
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#:\s]+)((?:#[^)]*)?)\)")
_LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".ipynb": "json"}


def linked_from(pages: Mapping[str, str]) -> dict[str, str]:
    """Reads the files that pages lead to, and those that these lead to.

    Args:
      pages: Markdown by the path below docs/.

    Returns:
      Markdown by the path on the site.
    """
    found: dict[str, str] = {}
    to_read = dict(pages)
    while to_read:
        uri, text = to_read.popitem()
        for match in _LINK.finditer(text):
            path = _outside(match.group(2), uri)
            if path and (new := _uri(path)) not in found:
                found[new] = _page(path)
                to_read[new] = found[new] if path.endswith(".md") else ""
    return found


def with_links(markdown: str, uri: str) -> str:
    """Has the links of a page lead to where the files are on the site."""

    def moved(match: re.Match[str]) -> str:
        target = match.group(2)
        path = _in_repository(target, uri)
        if (ROOT / path).is_dir():  # which has no page
            return match.group(1)
        if not _exists(path):
            return match.group()
        # A page outside links to docs/ as one of the repository, and both have moved.
        on_site = path.removeprefix("docs/") if path.startswith("docs/") else _uri(path)
        to = posixpath.relpath(on_site, posixpath.dirname(uri) or ".")
        return f"[{match.group(1)}]({to}{match.group(3)})"

    return _LINK.sub(moved, markdown)


def _outside(target: str, uri: str) -> str:
    """Returns the path in the repository of what a page links to, if that is outside of docs/."""
    path = _in_repository(target, uri)
    return path if _exists(path) and not path.startswith("docs/") else ""


def _in_repository(target: str, uri: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(_origin(uri)), target))


def _origin(uri: str) -> str:
    """Returns the path in the repository of a page of the site."""
    folder, _, rest = uri.partition("/")
    if folder != _FOLDER:
        return f"docs/{uri}"
    return rest if (ROOT / rest).is_file() else rest.removesuffix(".md")


def _exists(path: str) -> bool:
    return not path.startswith("..") and (ROOT / path).is_file()


def _uri(path: str) -> str:
    return f"{_FOLDER}/{path}" + ("" if path.endswith(".md") else ".md")


def _page(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = _LANGUAGES.get(pathlib.PurePath(path).suffix, "text")
    fence = "`" * 4  # docstrings may have three
    # What recipes say of themselves is found on their page.
    unsearched = "---\nsearch:\n  exclude: true\n---\n\n"
    return f"{unsearched}# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
