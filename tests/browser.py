"""Chromium without a window, driven by the DevTools protocol over a pair of pipes."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

TIMEOUT_S = 240  # on a machine with much else to do
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--mute-audio", "--remote-debugging-pipe"),
)
PHONE = (390, 844)
DESK = (1200, 900)


class Tab:
    """The browser's one tab. Messages are JSON, each ended by a zero byte."""

    def __init__(self, commands: int, replies: int) -> None:
        self.complaints: list[str] = []  # errors and warnings in the console, and failed loads
        self._commands, self._replies = commands, replies
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        (target,) = (
            one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        )
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (reply := self._receive()).get("id") != self._number:
            self._note(reply)
        assert "error" not in reply, (method, reply["error"])
        return dict(reply["result"])

    def open(self, address: str) -> Self:
        """Load a page, and wait until it is loaded."""
        self.complaints.clear()
        self._events.clear()
        self.call("Page.navigate", url="about:blank")
        self._wait("Page.loadEventFired")
        self.call("Page.navigate", url=address)
        self._wait("Page.loadEventFired")
        return self

    def value(self, expression: str) -> Any:
        """The value of an expression in the page; a promise's is awaited."""
        reply = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, (expression, reply["exceptionDetails"])
        return reply["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        self.value(
            "new Promise((resolve, reject) => {"
            f"const end = Date.now() + {TIMEOUT_S * 1000};"
            f"const look = () => ({condition}) ? resolve() : Date.now() > end"
            f" ? reject(Error('never: ' + {json.dumps(condition)})) : setTimeout(look, 10);"
            "look(); })"
        )

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key; `text` is what it types."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **typed)

    def type(self, text: str) -> None:
        """Type text into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def show(self, size: tuple[int, int] = DESK, dark: bool = False, media: str = "") -> None:
        """Set the window's size in pixels, the reader's colours, and `print` as the medium."""
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of the window, or of the `whole` page."""
        reply = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(reply["data"]))

    def _wait(self, event: str) -> None:
        while not any(one["method"] == event for one in self._events):
            self._note(self._receive())
        self._events.clear()

    def _note(self, message: dict[str, Any]) -> None:
        self._events.append(message)
        method, about = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(f"{about['entry']['level']}: {about['entry']['text']}")
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(about["args"]))
        elif method == "Network.requestWillBeSent":
            address = about["request"]["url"]
            if not address.startswith(("file:", "about:")):
                self.complaints.append(f"request to {address[:200]}")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._replies, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))


@contextmanager
def browser() -> Iterator[Tab]:
    """A browser with an empty tab; skips the test where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium here: ./setup.sh --test installs it, as root where apt-get is")
    their_commands, commands = os.pipe()
    replies, their_replies = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # it reads from descriptor 3 and writes to 4
        shell = f'exec "$0" "$@" 3<&{their_commands} 4>&{their_replies}'
        process = subprocess.Popen(
            ["bash", "-c", shell, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(their_commands, their_replies),
            stderr=subprocess.DEVNULL,
        )
        os.close(their_commands)
        os.close(their_replies)
        try:
            yield Tab(commands, replies)
        finally:
            os.close(commands)
            process.kill()
            process.wait()
            os.close(replies)
