"""The application as a process, and Debian's Chromium to look at it."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FEW_STEPS = (5, 5, 5, 5, 5)  # of each stage; the judge still sees the right shape


@contextlib.contextmanager
def served(out: Path, *flags: str) -> Iterator[str]:
    """The address of a server that ends with the block.

    Args:
      out: its output folder.
      *flags: more of the command line.
    """
    command = [sys.executable, "-m", "show1_jax.app", "--out", str(out), "--port", "0", *flags]
    cwd = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"the page: (http://\S+?/)", line)
            assert found, line
            yield found[1]
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


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
