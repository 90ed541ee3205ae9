"""A page in headless Chromium, read and used as a visitor would; everything it asks the network for is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

REQUIRE = "COVSHIFT_REQUIRE_BROWSER"
"""Set to 1 where a missing browser is a failure, as in continuous integration."""

SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


class Browser:
    """One browser; each :meth:`visit` is a fresh page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def visit(self, page: Path, *, fragment: str = "", width: int = 1280, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.driver.get("about:blank")
        self.problems()
        self.requests()
        self.driver.get(page.as_uri() + fragment)

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def media(self, *, scheme: str = "light", kind: str = "screen") -> None:
        self.command("Emulation.setEmulatedMedia", media=kind, features=[{"name": "prefers-color-scheme", "value": scheme}])

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def texts(self, selector: str) -> list[str]:
        """Visible text of every element that is seen."""
        return self.js(
            "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility()).map((e) => e.innerText.trim())",
            selector,
        )

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def keys(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def until(self, code: str, *arguments: Any) -> Any:
        """What ``code`` returns once that is true."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda driver: driver.execute_script(code, *arguments))

    def problems(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def started() -> Iterator[Browser]:
    """A browser for as long as it is needed; without one the tests are skipped, or fail where it is required."""
    found = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not all(found):
        missing = "no chromium and chromedriver on the path (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1, but {missing}")
        pytest.skip(missing)
    driver = _driver(*found, switches=SWITCHES)  # type: ignore[arg-type]
    try:
        yield Browser(driver)
    finally:
        driver.quit()


def _driver(binary: str, chromedriver: str, *, switches: Sequence[str]) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = binary
    for switch in switches:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(chromedriver))
