"""Progress bars on stderr, or lines where stderr is not a terminal."""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from tqdm import tqdm

UNITS = {"t5": "layer", "clip": "batch"}  # of stages that do not count steps
REFRESH_SECONDS = 0.5  # between two states of the bars on a terminal
LOG_SECONDS = 5.0  # between two lines in a log, while a bar is open


class Progress:
    """Shows how far a program is.

    `update` shows steps: one bar per stage, which stays, and what is done besides steps.
    `bar` and `add` show bytes: one bar at a time, which disappears.

    On a terminal, a thread redraws the bars every `REFRESH_SECONDS`. In a log, a bar of steps is a
    line when it is full, and a thread writes a line every `LOG_SECONDS`, even if nothing moves.
    The thread starts when something is shown and ends with `close`.
    """

    def __init__(
        self,
        shown: bool = True,
        *,
        stream: IO[str] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Shows nothing yet.

        Args:
          shown: False to show nothing at all.
          stream: where to write; None for stderr.
          check: called as work advances. It may raise an exception to stop the work.
        """
        self._stream, self._shown, self._check = stream or sys.stderr, shown, check
        self._terminal = self._stream.isatty()
        self._bars: dict[str, tqdm] = {}
        self._transient: tqdm | None = None  # disappears when something else is shown
        self._latest: tqdm | None = None  # what a log is told about
        self._written = time.monotonic()
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Leaves the bars of steps as they are, and ends the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self.clear()
        for bar in self._bars.values():
            bar.close()

    def clear(self) -> None:
        """Removes what is shown besides steps, because it is finished."""
        with self._lock:
            if self._transient is not None:
                self._transient.close()
                self._transient = self._latest = None

    def update(self, stage: str, done: int, steps: int, doing: str = "", /) -> None:
        """Shows how far a stage is.

        Args:
          stage: name of a stage or a text encoder.
          done: number of steps that are done.
          steps: number of all steps.
          doing: what happens now besides steps, such as "compiling".
        """
        if not self._shown:
            return
        with self._lock:
            self.clear()
            if doing:
                self._open_transient(desc=f"{stage}: {doing}", bar_format="{desc} [{elapsed}]")
                return
            if stage not in self._bars:
                unit = UNITS.get(stage, "step")
                self._bars[stage] = self._open(desc=stage, total=steps, unit=unit)
            bar = self._latest = self._bars[stage]
            bar.update(done - bar.n)
            if done == steps:
                self._write(bar)
                bar.close()
                self._latest = None  # else a log would be told of it again and again

    @contextlib.contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[None]:
        """Shows a bar of bytes within the context.

        Args:
          what: name of the work.
          total: number of bytes; None shows only the elapsed time.
        """
        self._check()
        if not self._shown:
            yield
            return
        elapsed_only = None if total is not None else "{desc}: {elapsed}"
        with self._lock:
            self.clear()
            self._open_transient(
                desc=what, total=total, unit="B", unit_scale=True, bar_format=elapsed_only
            )
        try:
            yield
        finally:
            self.clear()

    def add(self, count: int) -> None:
        """Counts bytes of the open `bar`; may be called from any thread."""
        self._check()
        with self._lock:
            if self._transient is not None:
                self._transient.n += count

    def _open_transient(self, **settings: Any) -> None:
        self._transient = self._open(leave=False, **settings)

    def _open(self, **settings: Any) -> tqdm:
        self._latest = tqdm(file=self._stream if self._terminal else io.StringIO(), **settings)
        if self._thread is None:
            self._thread = threading.Thread(target=self._tick, daemon=True)
            self._thread.start()
        return self._latest

    def _tick(self) -> None:
        """Redraws the bars, or writes lines; runs in the thread."""
        # A closed stream must not stop the program.
        with contextlib.suppress(OSError, ValueError):
            while not self._closed.wait(REFRESH_SECONDS):
                with self._lock:
                    due = time.monotonic() - self._written >= LOG_SECONDS
                    if self._terminal:
                        self._redraw()
                    elif self._latest is not None and due:
                        self._write(self._latest)

    def _redraw(self) -> None:
        for bar in (*self._bars.values(), self._transient):
            if bar is not None and not bar.disable:  # tqdm disables bars that are closed
                bar.refresh()

    def _write(self, bar: tqdm) -> None:
        if not self._terminal:
            self._stream.write(f"{bar}\n")  # one write, so that other lines do not split it
            self._stream.flush()
            self._written = time.monotonic()
