"""Debian's chromium, driven by selenium: what a person sees of a page, and all that the browser complains about."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.system.room import LIMIT, tool

_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


class Browser:
    """A headless browser with one page; a context manager."""

    def __init__(self, width: int = 1400, height: int = 900, *, script: bool = True) -> None:
        options = webdriver.ChromeOptions()
        for option in (*_OPTIONS, f"--window-size={width},{height}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.binary_location = tool("chromium")
        self._driver = webdriver.Chrome(options=options, service=Service(tool("chromedriver")))
        self._driver.set_page_load_timeout(LIMIT)
        self._command("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", **metrics)
        if not script:
            self._command("Emulation.setScriptExecutionDisabled", value=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._driver.quit()

    def prefer(self, *, dark: bool) -> None:
        """Have the system's colours be dark or light."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[feature])

    def open(self, url: str) -> None:
        self._driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        """Return the value of a function body in the page; the page's policy does not bind it."""
        return self._driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of the elements that are shown."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter((e) => e.offsetParent).map((e) => e.innerText)"
        )
        return list(self.run(script, selector))

    def cell(self, agent: str, name: str) -> str:
        script = (
            "return document.querySelector(`[data-agent='${arguments[0]}'] [data-cell='${arguments[1]}']`).innerText"
        )
        return str(self.run(script, agent, name))

    def wait(self, condition: Callable[[], object], what: str, limit: float = 20.0) -> float:
        """Poll until it holds; return the seconds that took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit, (
                f"{what}; the page shows {self.run('return document.body.innerText')}"
            )
            time.sleep(0.02)  # polls
        return time.monotonic() - began

    def type(self, selector: str, text: str) -> None:
        self._driver.find_element("css selector", selector).send_keys(text)

    def click(self, selector: str) -> None:
        self._driver.find_element("css selector", selector).click()

    @property
    def source(self) -> str:
        """Return the page's markup, which needs no script to be run."""
        return str(self._driver.page_source)

    def picture(self, path: Path) -> None:
        """Take a screenshot of what is visible."""
        assert self._driver.save_screenshot(str(path))

    def complaints(self) -> list[str]:
        """Return what is on the console, since the last call, and which policies were violated."""
        violated = [f"violated: {directive}" for directive in self.run("return window.violations ?? []")]
        log = self._driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log] + violated

    def _command(self, name: str, **parameters: object) -> None:
        self._driver.execute_cdp_cmd(name, parameters)
