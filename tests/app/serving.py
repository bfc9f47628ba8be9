"""The application as a process, and Debian's Chromium to look at it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FEW_STEPS = (5, 5, 5, 5, 5)  # of each stage; the judge still sees the right shape


class Server:
    """The service as a process of its own, on the embedded checkpoint.

    Attributes:
      process: the process.
      url: its address, without a slash at the end.
      errors: lines that it wrote to stderr.
    """

    def __init__(self, out: Path, *flags: str):
        """Starts it.

        Args:
          out: its output folder.
          *flags: more of the command line.
        """
        command = [sys.executable, "-m", "show1_jax.app", "--out", str(out), "--port", "0", *flags]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        line = self.process.stdout.readline()
        found = re.match(r"the page: (http://\S+?)/", line)
        if not found:
            self.end(signal.SIGKILL)
            raise RuntimeError(line + "".join(self.errors))
        self.url = found[1]

    def _read(self) -> None:
        self.errors += self.process.stderr

    def call(self, path: str, method: str = "GET", body: object = None) -> tuple[int, object]:
        """Status and JSON; text where it is no JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode(errors="replace")

    def metric(self, name: str) -> float:
        _, text = self.call("/metrics")
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    def wait(self, names: list[str], limit: float = 7200) -> list[dict]:
        """Waits until videos have ended."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            found = [self.call(f"/v1/videos/{name}")[1] for name in names]
            if all(video["status"] in ("completed", "failed") for video in found):
                return found
            time.sleep(0.5)
        raise TimeoutError("\n".join(self.errors[-20:]))

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it, if it has not ended; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(300)
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return status


@contextlib.contextmanager
def serving(out: Path, *flags: str) -> Iterator[Server]:
    """A server that is killed at the end of the block, if it has not ended."""
    server = Server(out, *flags)
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)


@contextlib.contextmanager
def served(out: Path, *flags: str) -> Iterator[str]:
    """The address of the page of a server that is told to end at the end of the block."""
    with serving(out, *flags) as server:
        yield f"{server.url}/"
        server.end()


@contextlib.contextmanager
def browser() -> Iterator:
    """Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        try:
            yield made
        finally:
            made.close()


def local_only(context) -> list[str]:
    """Blocks what is not on this machine; the addresses that were wanted are added to the list."""
    wanted: list[str] = []

    def decide(route) -> None:
        if re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]", route.request.url):
            route.continue_()
        else:
            wanted.append(route.request.url)
            route.abort()

    context.route(re.compile("^(https?|wss?):"), decide)
    return wanted


def set_steps(page) -> None:
    """Types `FEW_STEPS` into the form."""
    page.get_by_role("button", name="More settings").click()
    fields = page.get_by_label(re.compile(": steps$"))
    fields.first.wait_for()
    assert fields.count() == len(FEW_STEPS)
    for number, steps in enumerate(FEW_STEPS):
        fields.nth(number).fill(str(steps))
