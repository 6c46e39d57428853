"""A headless Chromium, driven over its debugging pipe: no library, no port."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60.0
"""How long a browser may take to answer."""


def program() -> str | None:
    """Return the path of a browser; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a running browser.

    Attributes:
        requests: addresses that the page asked for since it was opened.
        problems: errors and warnings of its console, and exceptions that nobody caught.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._session, self._number, self._rest = read, write, "", 0, b""
        self.requests: list[str] = []
        self.problems: list[str] = []
        os.set_blocking(read, False)
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Show a file in a window of `width` pixels and wait until everything in it is drawn."""
        self.requests.clear()
        self.problems.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.run(
            "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
            ".then(() => Promise.all([...document.images].map(image => image.decode())))"
        )

    def run(self, script: str) -> Any:
        """Return the JSON value of an expression in the page, awaited if it is a promise."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, path: Path) -> None:
        """Write the page as it is printed."""
        self.ask("Emulation.setEmulatedMedia", media="")
        found = self.ask("Page.printToPDF", preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(found["data"]))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to one command of the protocol; events meanwhile are noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))
        raise AssertionError(f"the browser closed before it answered {method}")

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + SECONDS
        while True:
            *whole, self._rest = self._rest.split(b"\0", 1) if b"\0" in self._rest else [self._rest]
            for message in whole:
                yield json.loads(message)
            if whole:
                continue
            if time.monotonic() > end:
                raise AssertionError(f"the browser did not answer within {SECONDS:g} s")
            try:
                if not (more := os.read(self._read, 1 << 20)):
                    return
                self._rest += more
            except BlockingIOError:
                time.sleep(0.005)

    def _note(self, event: str, values: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(values["exceptionDetails"].get("text", "exception"))
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.problems.append(str(values["args"]))
        elif event == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.problems.append(values["entry"]["text"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in `folder`; it is ended afterwards."""
    found = program()
    assert found is not None
    pipes = [os.pipe(), os.pipe()]
    # The protocol's pipe is file descriptors 3 and 4 of the browser. The shell renumbers them, from others than those.
    (to_browser, from_us), (to_us, from_browser) = (
        [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipe] for pipe in pipes
    )
    for pipe in pipes:
        for end in pipe:
            os.close(end)
    line = [
        *("bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', found),
        *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    ]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(line, pass_fds=(to_browser, from_browser), stdin=quiet, stdout=quiet, stderr=quiet)
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(to_us, from_us)
    finally:
        os.close(from_us)  # the end of its pipe ends the browser
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_us)
