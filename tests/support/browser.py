"""Headless Chromium, driven over a pipe by its DevTools protocol: no port, no driver, no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "needs Chromium: install it (Debian, Ubuntu: apt-get install chromium), or name one in CHROMIUM"
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--force-color-profile=srgb", "--font-render-hinting=none",
)  # fmt: skip
_PATIENCE_S = 60.0


def find_chromium() -> str | None:
    """The command of a browser: that of CHROMIUM, or the first on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Page:
    """One tab: what it logged, and whatever a script of ours returns."""

    browser: Browser
    session: str
    errors: list[str] = field(default_factory=list)

    def send(self, method: str, **parameters: Any) -> Any:
        """Ask the tab for something."""
        return self.browser.send(method, parameters, self.session)

    def show(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Set the window's size, in CSS pixels, and the colour scheme that is preferred."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        """Go to a URL, until it has loaded."""
        self.errors.clear()
        self.browser.loaded.discard(self.session)
        self.send("Page.navigate", url=url)
        self.browser.wait_for(lambda: self.session in self.browser.loaded)

    def run(self, script: str) -> Any:
        """Return what an expression is worth in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, and let go of it."""
        for kind in ("keyDown", "keyUp"):
            text = {"Enter": "\r"}.get(key, "") if kind == "keyDown" else ""
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


class Browser:
    """A browser with a profile of its own."""

    def __init__(self, command: str, folder: str) -> None:
        to_read, self._writer = os.pipe()
        self._reader, to_write = os.pipe()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []

        def place_pipes() -> None:  # the protocol's are 3 and 4
            kept = os.dup(to_read), os.dup(to_write)
            os.dup2(kept[0], 3)
            os.dup2(kept[1], 4)

        self._process = subprocess.Popen(
            [command, *_FLAGS, *sandbox, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(3, 4), preexec_fn=place_pipes, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}
        self.loaded: set[str] = set()

    def new_page(self) -> Page:
        """Open a tab."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        return page

    def send(self, method: str, parameters: Mapping[str, Any] = {}, session: str | None = None) -> Any:
        """Ask for something, and wait for the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        number = self._number
        self.wait_for(lambda: number in self._answers)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait_for(self, is_there: Any) -> None:
        """Take messages until something is so."""
        until = time.monotonic() + _PATIENCE_S
        while not is_there():
            ready, _, _ = select.select([self._reader], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self._reader, 1 << 20) if ready else b""
            assert data, "Chromium ended, or does not answer"
            *messages, self._buffer = (self._buffer + data).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        session, told = message.get("sessionId", ""), message.get("params", {})
        page = self._pages.get(session)
        if message["method"] == "Page.loadEventFired":
            self.loaded.add(session)
        elif page and message["method"] == "Runtime.exceptionThrown":
            page.errors.append(json.dumps(told["exceptionDetails"])[:2000])
        elif (
            page and message["method"] == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert")
        ):
            page.errors.append(json.dumps(told["args"])[:2000])
        elif page and message["method"] == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            page.errors.append(told["entry"]["text"])

    def close(self) -> None:
        """End it."""
        os.close(self._writer)
        os.close(self._reader)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def chromium(command: str) -> Iterator[Browser]:
    """Run a browser for a while."""
    with tempfile.TemporaryDirectory(prefix="reshard-browser-", ignore_cleanup_errors=True) as folder:
        browser = Browser(command, folder)
        try:
            yield browser
        finally:
            browser.close()
