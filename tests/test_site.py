"""The docs site: it is built without a warning, its links lead somewhere, and it asks nobody."""

import html
import pkgutil
import re
from urllib.parse import urlsplit

import pytest
import site_pages

from lbsgd.main import COMMANDS
from lbsgd.run.config import KEYS, ROOMS

pytest.importorskip("mkdocs", reason="the site is built by `make docs`")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return site_pages.build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site):
    return site_pages.read(site)


def test_links_lead_to_files_and_anchors(site, pages):
    assert len(pages) > 40
    assert site_pages.broken(site, pages) == []


def test_a_broken_link_and_a_broken_anchor_are_found(site, pages, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<p id="here"><a href="gone.html">x</a><a href="#here">y</a><a href="#away">z')
    found = site_pages.broken(tmp_path, {page: site_pages.Page(page)})
    assert found == ["page.html: gone.html", "page.html: #away"]


def test_links_to_elsewhere_are_whole(pages):
    found = {url for page in pages.values() for url in page.links if site_pages.is_external(url)}
    assert found
    whole = re.compile(r"https?://[\w.-]+\.[a-z]+(/[\w./?=&%#@:~+-]*)?")
    assert not [url for url in found if not whole.fullmatch(url)]


def test_nothing_is_loaded_from_elsewhere(site, pages):
    loaded = {url for page in pages.values() for url in page.loaded}
    assert {urlsplit(url).scheme for url in loaded} <= {"", "data"}
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"@import|url\([\"']?https?:", styles)


def test_every_key_is_in_the_reference(site, pages):
    page = pages[site / "reference" / "configuration.html"]
    assert KEYS.keys() | ROOMS.keys() <= page.anchors
    entries = re.split(r"<h[23] ", page.path.read_text())
    for name, key in KEYS.items():
        (entry,) = [entry for entry in entries if f'id="{name}"' in entry]
        text = " ".join(html.unescape(re.sub("<.*?>", "", entry)).split())
        default = f'"{key.default}"' if isinstance(key.default, str) else str(key.default)
        assert type(key.default).__name__ in text
        assert f"default {default}" in text
        assert all(word in text for word in (key.unit, *key.choices, *key.used_with))
        assert ("may differ when a run resumes" in text) == key.machine


def test_what_a_key_may_be_is_said(site):
    text = (site / "reference" / "configuration.html").read_text()
    text = " ".join(html.unescape(re.sub("<.*?>", "", text)).split())
    sgd = "used with optimizer.name=sgd, lars or spngd"
    assert f"float · default 0.9 · at least 0, and below 1 · {sgd}" in text
    assert "int · default 256 · examples · above 0; at most 1,000,000,000" in text
    assert "must be two whole numbers, or (0, 0)" in text


def test_every_command_is_in_the_reference(site, pages):
    page = pages[site / "reference" / "commands.html"]
    assert {*COMMANDS, "sweep-run", "sweep-report"} <= page.anchors
    assert "--num_processes" in page.path.read_text()


def test_a_key_in_a_text_leads_to_what_is_said_of_it(site):
    text = (site / "methods" / "linear_scaling.html").read_text()
    link = '<a href="../reference/configuration.html#learning_rate.scaling">'
    text = text.replace("<wbr>", "")
    assert f"{link}<code>learning_rate.scaling</code></a>" in text
    assert f"{link}<code>learning_rate.scaling=none</code></a>" in text


def test_examples_in_docstrings_are_shown_as_code(site):
    text = (site / "reference" / "optim.html").read_text()
    assert "<blockquote>" not in text
    assert '<span class="gp">' in text  # a prompt


def test_what_the_api_pages_name_can_be_imported():
    folder = site_pages.ROOT / "docs" / "reference"
    text = "".join(path.read_text() for path in folder.glob("*.md"))
    names = re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)
    assert len(names) > 20
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name
