"""A real browser without a screen: Debian's Chromium, by `make browser`."""

import json
import shutil

import pytest

BROWSER = ("chromium", "chromedriver")
needs_browser = pytest.mark.skipif(
    not all(map(shutil.which, BROWSER)), reason="no Chromium here: make browser"
)


def start(width, height, scheme):
    """Starts one whose window, phone or desktop, is so large; scheme is "light" or "dark"."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_page_load_timeout(120)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    return browser


def fits(browser):
    """Tells whether nothing sticks out of the page to the right."""
    script = "return document.documentElement.scrollWidth <= window.innerWidth"
    return browser.execute_script(script)


def contrast(browser):
    """Brightness of ink and of paper, each from 0 to 255."""
    script = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    return [brightness(color) for color in browser.execute_script(script)]


def brightness(color):
    """Reads rgb(1, 2, 3), of colours from 0 to 255."""
    numbers = color[color.index("(") + 1 : color.index(")")].split(",")[:3]
    return sum(map(float, numbers)) / 3


def requested(browser):
    """Lists what the browser asked anyone for, by its own log, since this was called last."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [m["params"]["request"]["url"] for m in asked]
