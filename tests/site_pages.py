"""The built site, as the tests of it read it."""

import html.parser
import os
import pathlib
import subprocess
import sys
from urllib.parse import unquote, urlsplit

ROOT = pathlib.Path(__file__).parents[1]


def build(folder):
    """Builds the site into a folder; a warning of mkdocs is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Page(html.parser.HTMLParser):
    """What a page can be linked by, what it links to, and what it makes a browser load."""

    def __init__(self, path):
        super().__init__()
        self.path, self.anchors, self.links, self.loaded = path, {""}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag != "meta" and (url := values.get("src") or values.get("href")):
            self.loaded.append(url)


def read(site):
    """Parses all pages, by path."""
    return {path: Page(path) for path in site.rglob("*.html")}


def is_external(url):
    return bool(urlsplit(url).scheme)


def broken(site, pages):
    """Lists the links that lead to no file, or to no anchor of it."""
    found = []
    for page in pages.values():
        for url in filter(lambda url: not is_external(url), page.links + page.loaded):
            parts = urlsplit(url)
            start = site if parts.path.startswith("/") else page.path.parent
            path = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else page.path
            path = path / "index.html" if path.is_dir() else path
            anchors = pages[path].anchors if path in pages else {""}
            if not path.is_file() or unquote(parts.fragment) not in anchors:
                found.append(f"{page.path.relative_to(site)}: {url}")
    return found
