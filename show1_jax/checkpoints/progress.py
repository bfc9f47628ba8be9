"""How far a long piece of work is, in bytes, on a terminal or in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from tqdm import tqdm

SECONDS_ON_TERMINAL = 0.2
SECONDS_IN_LOG = 6.0


class Progress:
    """A bar on a terminal; elsewhere a line every few seconds, even when nothing moves."""

    def __init__(
        self,
        stream: IO[str] | None = None,
        seconds: float | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        """Nothing is shown before `bar`.

        Args:
          stream: where to; stderr for None.
          seconds: between two lines or two states of the bar; None for what suits the stream.
          check: called as work advances; may raise, to stop it.
        """
        self._stream = stream or sys.stderr
        self._lines = not self._stream.isatty()
        self._seconds = seconds or (SECONDS_IN_LOG if self._lines else SECONDS_ON_TERMINAL)
        self._check = check
        self._drawn = time.monotonic()
        self._bar: Any = None

    @contextlib.contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[None]:
        """Shows the progress of `total` bytes, or None for the time alone, while it is open."""
        self._check()
        self._bar = tqdm(
            desc=what,
            total=total,
            unit="B",
            unit_scale=True,
            leave=False,
            bar_format=None if total is not None else "{desc}: {elapsed}",
            file=_Lines(self._stream) if self._lines else self._stream,
            # It is drawn below alone, not where bytes are counted.
            delay=1e9,
        )
        self._bar.delay = 0
        stopped = threading.Event()
        drawing = threading.Thread(target=self._draw, args=(self._bar, stopped), daemon=True)
        drawing.start()
        try:
            yield
        finally:
            stopped.set()
            drawing.join()
            self._bar.close()
            self._bar = None

    def add(self, count: int) -> None:
        """Counts bytes; from any thread."""
        self._check()
        if self._bar is not None:
            self._bar.n += count

    def _draw(self, bar: Any, stopped: threading.Event) -> None:
        # Counted from what the bar before this one drew, so that no two are silent in a row.
        while not stopped.wait(max(0, self._drawn + self._seconds - time.monotonic())):
            bar.refresh()
            self._drawn = time.monotonic()


class _Lines:
    """A stream on which each state of a bar is a line of its own."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> None:
        if text := text.strip():
            self._stream.write(text + "\n")

    def flush(self) -> None:
        self._stream.flush()
