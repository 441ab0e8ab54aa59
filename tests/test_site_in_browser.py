"""The docs site in a real browser, from files: it is readable, quiet, and its search finds."""

import pathlib
from urllib.parse import urlsplit

import pytest
import site_pages
from browser import contrast, fits, needs_browser, requested, start

pytestmark = [pytest.mark.long, needs_browser]
PAGES = ["index.html", "tutorial.html", "methods.html", "methods/lars.html", "running.html"]
PAGES += ["reference/configuration.html", "reference/commands.html", "reference/optim.html"]
PAGES += ["outside/configs/digits.py.html", "collectives.html", "faq.html"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the site is built by `make docs`")
    return site_pages.build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module", params=[(1440, 900, "light"), (390, 844, "dark")])
def browser(request):
    opened = start(*request.param)
    opened.scheme = request.param[2]
    yield opened
    opened.quit()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_and_is_quiet(site, browser, page, tmp_path):
    browser.get((site / page).as_uri())
    assert fits(browser)
    ink, paper = contrast(browser)
    assert (ink > paper) == (browser.scheme == "dark")
    assert abs(ink - paper) > 100
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert browser.get_log("browser") == []
    asked = requested(browser)
    assert asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


def test_search_finds(site, browser):
    found = search(browser, site / "index.html", "momentum correction")
    assert found[0] == (site / "methods" / "momentum_correction.html", "")
    found = search(browser, site / "methods" / "lars.html", "trust_coefficient")
    assert (site / "reference" / "configuration.html", "optimizer.trust_coefficient") in found
    assert {url.partition(":")[0] for url in requested(browser)} <= {"file", "data"}
    assert browser.get_log("browser") == []


def search(browser, page, words):
    """Types words into the search of a page, and gives path and anchor of all that it finds."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(page.as_uri())
    browser.execute_script("document.getElementById('__search').click()")
    box = browser.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]")
    wait = WebDriverWait(browser, 60)
    wait.until(lambda _: box.is_displayed())
    box.send_keys(words)
    script = "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
    parts = [urlsplit(url) for url in wait.until(lambda _: browser.execute_script(script))]
    return [(pathlib.Path(part.path), part.fragment) for part in parts]
