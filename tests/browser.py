"""Headless Chromium before a real MLflow server: reports as people see them, in the Artifacts tab."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCREENSHOTS = ROOT / "test-output" / "screenshots"
WAIT = 30.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def executables() -> tuple[str, str]:
    """Paths of Chromium and its driver; skips the test where either is not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium and chromedriver on PATH: install Debian's chromium and chromium-driver")
    return browser, driver


class Browser:
    """One browser session; `open_artifact` leaves it inside the report's frame."""

    def __init__(self, profile: Path) -> None:
        pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[test]'")
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        browser, driver = executables()
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=Service(driver))
        self.window = (1280, 800)

    def close(self) -> None:
        """End the browser and its driver."""
        self.driver.quit()

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript where the session stands (the report's frame, once opened)."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """Return the first element that matches, or None."""
        return next(iter(self.all(selector)), None)

    def all(self, selector: str) -> list[Any]:
        """Return every element that matches."""
        return list(self.driver.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of every element that matches, shown or not."""
        return list(
            self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())", selector)
        )

    def until(self, condition: Any, what: str) -> Any:
        """Wait for ``condition()`` to be true; fail saying ``what`` did not come."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {WAIT:.0f} s")

    def click(self, element: Any) -> None:
        """Bring an element to the middle of the frame and click it as a person does."""
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def button(self, words: str, within: str = "main") -> Any:
        """Return the button with these words."""
        return next(b for b in self.all(f"{within} button") if b.text == words)

    def scheme(self, name: str) -> None:
        """Emulate the system's ``light`` or ``dark`` preference."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def resize(self, width: int, height: int) -> None:
        """Set the window's size."""
        self.window = (width, height)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open_artifact(self, server: str, experiment_id: str, run_id: str, path: str) -> None:
        """Open an artifact in MLflow's Artifacts tab and enter the frame that shows it."""
        self.driver.switch_to.default_content()
        self.driver.get("about:blank")
        self.driver.get(f"{server}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}")
        self.enter()

    def enter(self) -> None:
        """Enter the report's frame once its script has run."""
        self.driver.switch_to.default_content()
        frame = self.until(lambda: self.find("iframe.mlflow-html-iframe"), "the report's frame")
        self.driver.switch_to.frame(frame)
        ready = "return document.readyState === 'complete' && document.querySelector('main') !== null"
        self.until(lambda: self.run(ready), "the report in its frame")

    def frame_width(self, width: int) -> None:
        """Size the window so that the report's frame is ``width`` pixels wide, as tall as what it shows."""
        # MLflow's panels share the window's width, so a pixel more of window is less than one of frame.
        for _ in range(12):
            gap = width - int(self.run("return window.innerWidth"))
            if gap == 0:
                break
            self.resize(self.window[0] + (gap if abs(gap) < 4 else round(1.5 * gap)), self.window[1])
            time.sleep(0.15)
        assert int(self.run("return window.innerWidth")) == width
        content = int(self.run("return document.documentElement.scrollHeight"))
        self.resize(self.window[0], min(content + 260, 12_000))
        time.sleep(0.1)

    def screenshot(self, name: str) -> Path:
        """Save what the frame shows."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.driver.switch_to.default_content()
        frame = self.find("iframe.mlflow-html-iframe")
        frame.screenshot(str(path))
        self.driver.switch_to.frame(frame)
        return path

    def errors(self) -> list[str]:
        """Return the errors the report itself, not MLflow's pages, wrote to the console since last asked."""
        entries = self.driver.get_log("browser")
        own = [e for e in entries if e["level"] in ("SEVERE", "WARNING")]
        return [e["message"] for e in own if "blob:" in e["message"]]

    def axe(self) -> list[str]:
        """Return axe-core's serious and critical violations; skips where its script is not at hand."""
        source = os.environ.get("RELABEL_AUDIT_AXE")
        if not source or not Path(source).is_file():
            pytest.skip("RELABEL_AUDIT_AXE does not name axe.min.js: npm install axe-core")
        self.run(Path(source).read_text(encoding="utf-8"))
        self.driver.set_script_timeout(60)
        result = self.driver.execute_async_script(
            "const done = arguments[0];"
            "axe.run(document, {resultTypes: ['violations']})"
            ".then(r => done(r.violations), e => done(String(e)));"
        )
        assert isinstance(result, list), result
        found = [(v["id"], v["nodes"][0]) for v in result if v["impact"] in ("serious", "critical")]
        return [f"{name}: {node['html'][:160]} {node['failureSummary'][:300]}" for name, node in found]
