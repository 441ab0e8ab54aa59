"""report.html in a real browser: rows are switched and sorted, and nothing leaves the machine."""

import made_up
import pytest
from browser import brightness, contrast, fits, needs_browser, requested, start

from lbsgd.experiments import load
from lbsgd.experiments.html import page

pytestmark = [pytest.mark.long, needs_browser]
NAMES = ("kn=256, baseline", "kn=8k, no warmup", "kn=8k, constant warmup", "kn=8k, gradual warmup")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    made_up.goyal_table1(folder)
    (folder / "report.html").write_text(page(load(folder)))
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(report):
    opened = start(1200, 900, "light")
    opened.get(report.as_uri())
    yield opened
    opened.quit()


def names(browser):
    script = "return [...document.querySelectorAll('#results tbody td.row')].map(c => c.innerText)"
    return [name.strip() for name in browser.execute_script(script)]


def drawn(browser):
    """The rows whose curves are shown."""
    script = """return [...new Set(document.getElementById('curves')._fullData
        .filter(t => t.visible === true).map(t => t._input.row))].sort()"""
    return browser.execute_script(script)


def click(browser, selector, which=0):
    from selenium.webdriver.common.by import By

    found = browser.find_elements(By.CSS_SELECTOR, selector)[which]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()


def test_a_click_on_a_heading_sorts(browser):
    heading = 6  # the error
    click(browser, "#results thead button", heading)
    rising = names(browser)
    assert rising[:4] == [NAMES[0], NAMES[3], NAMES[1], NAMES[2]]
    assert rising[-1] == "kn=128k"  # diverged, which is no number
    click(browser, "#results thead button", heading)
    falling = names(browser)
    assert falling[:5] == [*rising[:5]][::-1]
    assert falling[-1] == "kn=128k"
    click(browser, "#results thead button", 1)  # by number, not by letter
    assert names(browser)[0] == NAMES[0]


def test_a_box_of_the_table_switches_its_row(browser):
    assert drawn(browser) == [0, 1, 2, 3, 4, 5]
    click(browser, "#results input[data-row='1']")
    assert drawn(browser) == [0, 2, 3, 4, 5]
    click(browser, "#results input[data-row='1']")
    assert drawn(browser) == [0, 1, 2, 3, 4, 5]


def test_a_click_in_the_legend_switches_the_box(browser):
    click(browser, "#curves .legendtoggle", 2)
    assert drawn(browser) == [0, 1, 3, 4, 5]
    box = "return document.querySelector(\"#results input[data-row='2']\").checked"
    assert browser.execute_script(box) is False
    click(browser, "#results input[data-row='2']")
    assert browser.execute_script(box) is True


def test_another_metric_is_chosen(browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    label = "return document.querySelector('#curves .ytitle').textContent"
    assert browser.execute_script(label) == "error %"
    chooser = Select(browser.find_element(By.ID, "metric"))
    chooser.select_by_visible_text("loss")
    assert browser.execute_script(label) == "loss"
    chooser.select_by_visible_text("error %")


def test_each_run_is_shown_on_demand(browser):
    count = "return document.getElementById('curves')._fullData.length"
    before = browser.execute_script(count)
    click(browser, "#singly")
    # One for each run that has begun, and the dashed means.
    assert browser.execute_script(count) == 25 + 6
    click(browser, "#singly")
    assert browser.execute_script(count) == before


def test_a_derivation_is_opened(browser):
    shown = "return document.querySelector('details pre').checkVisibility()"
    assert browser.execute_script(shown) is False
    click(browser, "details summary")
    assert browser.execute_script(shown) is True


def test_plotly_offers_nothing_that_sends_data(browser):
    script = "return [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)"
    found = set(browser.execute_script(script))
    assert found == {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1200, 900, "light"), (1200, 900, "dark"), (390, 800, "dark")]
)
def test_page_is_readable_and_quiet(report, width, height, scheme, tmp_path):
    """It fits, its ink stands out from its paper, no request was made, no error was logged."""
    opened = start(width, height, scheme)
    try:
        opened.get(report.as_uri())
        assert fits(opened)
        ink, paper = contrast(opened)
        assert (ink > paper) == (scheme == "dark")
        assert abs(ink - paper) > 150
        of_axis = "return getComputedStyle(document.querySelector('#curves .xtick text')).fill"
        assert brightness(opened.execute_script(of_axis)) == ink
        opened.save_screenshot(str(tmp_path / f"{scheme}_{width}.png"))
        assert opened.get_log("browser") == []
        assert requested(opened) == [report.as_uri()]
    finally:
        opened.quit()
