"""A headless Chromium for tests of pages: found on the machine, never downloaded."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str:
    """What a browser test lacks here, empty if nothing."""
    if importlib.util.find_spec("selenium") is None:
        return 'no selenium; pip install "ficoco_ext[test]"'
    if not any(map(shutil.which, _BROWSERS)):
        return "no Chromium; .ci/browser installs one"
    return "" if shutil.which("chromedriver") else "no chromedriver; .ci/browser installs one"


@contextlib.contextmanager
def chromium():
    """A driver. Skips where there is no browser, unless FICOCO_REQUIRE_BROWSER=1: then that is a failure."""
    if reason := missing():
        if os.environ.get("FICOCO_REQUIRE_BROWSER") == "1":
            pytest.fail(f"FICOCO_REQUIRE_BROWSER=1, but {reason}")
        pytest.skip(f"needs a browser: {reason}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, _BROWSERS)))
    # No sandbox: containers of CI run as root. The page under test is our own.
    for option in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
    ):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def resize(driver, width: int, height: int = 900, scheme: str = "light") -> None:
    """The size of the window's inside, also below what a window can be made, and light or dark."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def complaints(driver) -> list[str]:
    """What was written to the console since the last call, errors of the page among it."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requested(driver) -> list[str]:
    """Addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]


def one(driver, selector: str):
    """The first element there, as CSS names it."""
    return driver.find_element("css selector", selector)


def said(driver, selector: str) -> str:
    """What a person reads there."""
    return one(driver, selector).text


def press(driver, *keys: str) -> None:
    """Keys for what has the focus."""
    from selenium.webdriver import ActionChains

    ActionChains(driver, duration=20).send_keys(*keys).perform()


def key(name: str) -> str:
    """A key that is no letter, by its name in Selenium."""
    from selenium.webdriver import Keys

    return getattr(Keys, name)


def point(driver, element) -> None:
    """Move the mouse there."""
    from selenium.webdriver import ActionChains

    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(driver, duration=20).move_to_element(element).perform()
