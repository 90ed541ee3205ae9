"""Pages of one run and of several, in Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from covshift.reporting import write_report

NAMES = [
    "conv0",
    "act0",
    "<script>alert(1)</script>",
    "</script><script>window.taken = 1</script>",
    "quotes \"double\" and 'single'",
    "act2",
    "block.3.conv",
    "block.3.act",
]

REQUIRE = "COVSHIFT_REQUIRE_BROWSER"
"""Set to 1 where a missing browser is a failure, as in continuous integration."""

SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")

FILTER = """
const field = document.querySelector(`.filter [name=${arguments[0]}]`);
field.value = arguments[1];
field.dispatchEvent(new Event('input', { bubbles: true }));
"""

TOO_WIDE = """
return [...document.querySelectorAll('.scroll')]
  .filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth).map((e) => e.ariaLabel)
"""


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
        self.command(
            "Emulation.setEmulatedMedia", media=kind, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def texts(self, selector: str) -> list[str]:
        """Visible text of every element that is seen."""
        return self.js(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((e) => e.checkVisibility()).map((e) => e.innerText.trim())",
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

        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(
            lambda driver: driver.execute_script(code, *arguments)
        )

    def problems(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def opened(self, layer: str) -> None:
        """Wait until the section of ``layer`` stands there with its charts."""
        self.until("return document.querySelector('#layer-name').textContent === arguments[0]", layer)
        self.until("return document.querySelectorAll('#layer-charts figure canvas').length > 0")

    def chart(self, key: str) -> tuple[list[str], np.ndarray]:
        """Labels and numbers of a chart as the browser holds them, x first; NaN where it holds nothing."""
        labels, data = self.js(
            "const plot = document.querySelector('#chart-' + arguments[0]).plot;"
            "return [plot.series.map((s) => s.label), plot.data.map((part) => [...part])]",
            key,
        )
        return labels, np.array(data, dtype=float)

    def order(self, table: str, column: int = 0) -> list[str]:
        """Cells of one column of a table, from the top, as their titles have them in full."""
        cells = "[...document.querySelectorAll(`${arguments[0]} tbody tr`)].map((row) => row.cells[arguments[1]])"
        return self.js(f"return {cells}.map((cell) => cell.title || cell.textContent.trim())", table, column)

    def filter(self, name: str, value: str) -> None:
        """Set a field of the filter, as typing or choosing does."""
        self.js(FILTER, name, value)

    def too_wide(self) -> list[str]:
        """Labels of the boxes that are seen and hold more than their width."""
        return self.js(TOO_WIDE)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
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


@pytest.fixture(scope="session")
def names() -> list[str]:
    """Layers of the page of one run."""
    return NAMES


@pytest.fixture(scope="session")
def run(make_run: Callable[..., xr.DataTree], names: list[str]) -> xr.DataTree:
    """A run that is sick, with names that are hostile."""
    return make_run(pairs=4, names=names, dying=True, name="sick")


@pytest.fixture(scope="session")
def page(run: xr.DataTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that run."""
    return write_report(run, tmp_path_factory.mktemp("single") / "report.html", figures_at_most=2)


@pytest.fixture(scope="session")
def several(make_run: Callable[..., xr.DataTree], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two seeds of two variants."""
    runs = [
        make_run(pairs=3, linked=kind == "linked", dying=kind == "plain", name=f"{kind} seed {seed}", seed=seed)
        for seed in (0, 1)
        for kind in ("plain", "linked")
    ]
    return write_report(runs, tmp_path_factory.mktemp("several") / "report.html", figures_at_most=1)


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """Whatever a test does: the console stays empty, and nothing is asked for but the page itself."""
    browser.media()
    yield
    assert browser.problems() == []
    assert all(url.startswith(("file://", "data:", "about:", "blob:")) for url in browser.requests())
    browser.command("Emulation.setScriptExecutionDisabled", value=False)
