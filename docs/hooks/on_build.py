"""Builds the site: what mkdocs calls, in the order in which it does."""

import posixpath
import re
from typing import Any

import commands
import configuration
import outside
import recipes
from mkdocs.structure.files import File, Files

from lbsgd.run.config import KEYS

# A page says `<!-- generated: configuration -->` where the code knows better than a text could.
_GENERATORS = {
    "commands": commands.page,
    "configuration": configuration.page,
    "recipes": recipes.page,
}
_MARK = re.compile(r"<!-- generated: (\w+) -->")
_CONFIGURATION = "reference/configuration.html"


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the files that pages link to, and that lie outside of docs/."""
    pages = {f.src_uri: _with_generated(f.content_string) for f in files.documentation_pages()}
    for uri, content in outside.linked_from(pages).items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Writes what is generated, and has links lead to the copies of what lies outside of docs/."""
    return outside.with_links(_with_generated(markdown), page.file.src_uri)


def _with_generated(markdown: str) -> str:
    return _MARK.sub(lambda mark: _GENERATORS[mark.group(1)](), markdown)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Links each key of the config that a page mentions to what is said of it."""
    if page.url == _CONFIGURATION:
        return html
    to = posixpath.relpath(_CONFIGURATION, posixpath.dirname(page.url) or ".")

    def linked(match: re.Match[str]) -> str:
        key = match.group("key")
        if key not in KEYS:
            return match.group()
        # A long key breaks at its parts in a narrow table.
        words = re.sub(r"([._])", r"\1<wbr>", match.group())
        return f'<a href="{to}#{key}">{words}</a>'

    return _CODE.sub(linked, html)


# A word of code by itself; what is in a link already, or in a block of code, is passed over whole.
_CODE = re.compile(
    r"<a\s.*?</a>|<pre.*?</pre>|<h\d.*?</h\d>"
    r"|<code>(?:--config\.)?(?P<key>[a-z]\w*(?:\.\w+)*)(?:=[^<]*)?</code>",
    flags=re.DOTALL,
)
