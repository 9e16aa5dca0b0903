"""A headless Chromium, spoken to through its DevTools port: for pictures of pages, and for tests that look at them."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1700,520 --remote-debugging-port=0"
)


class Browser:
    """One page of a browser whose profile is ``folder``. To be closed."""

    def __init__(self, folder: Path) -> None:
        from websocket import create_connection

        command = [str(CHROMIUM), *FLAGS.split(), "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]
        self.program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = folder / "DevToolsActivePort"
        self.until("the browser", lambda: port_file.exists() and port_file.read_text().strip())
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self.socket = create_connection(page["webSocketDebuggerUrl"], timeout=120, suppress_origin=True)
        self.count = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def resize(self, width: int, height: int = 560) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def picture(self, path: Path) -> None:
        """Keep what is seen, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.socket.close()
        self.program.terminate()
        self.program.wait(30)

    @staticmethod
    def until(what: str, ready: Callable[[], Any], seconds: float = 400.0) -> None:
        """Wait. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}")
            time.sleep(0.3)
