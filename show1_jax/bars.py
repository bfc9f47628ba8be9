"""What goes on, on stderr."""

import contextlib
import io
import sys
import threading
import time
from typing import Any

from tqdm import tqdm

UNITS = {"t5": "layer", "clip": "batch"}  # of what has no steps
TICK = 1.0  # seconds after which the time that is shown moves
SILENCE = 5.0  # seconds after which stderr, if it is no terminal, is told what goes on


class Bars:
    """What goes on, on stderr: a bar for each stage, one below the other, and what is not a step.

    On a terminal they move every `TICK` seconds. Elsewhere a bar is a line when it is full,
    and what takes longer than `SILENCE` seconds a line each time that they have passed.
    """

    def __init__(self, shown: bool = True) -> None:
        """Begins to show what goes on.

        Args:
          shown: whether anything is shown at all.
        """
        self._stream, self._shown = sys.stderr, shown
        self._terminal = self._stream.isatty()
        self._bars: dict[str, tqdm] = {}
        self._doing: tqdm | None = None
        self._last: tqdm | None = None
        self._said = time.monotonic()
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        if shown:
            self._ticker.start()

    def close(self) -> None:
        """Leaves the bars as they are."""
        self._closed.set()
        if self._shown:
            self._ticker.join()
        self.clear()
        for bar in self._bars.values():
            bar.close()

    def clear(self) -> None:
        """Takes away what is done other than steps: it is over."""
        with self._lock:
            if self._doing is not None:
                self._doing.close()
                self._doing = self._last = None

    def update(self, stage: str, done: int, steps: int, doing: str = "", /) -> None:
        """Shows how far a stage is.

        Args:
          stage: or text encoder.
          done: how many of its steps are done.
          steps: how many there are.
          doing: what is done now other than steps, such as "compiling".
        """
        if not self._shown:
            return
        with self._lock:
            self.clear()
            if doing:
                text = f"{stage}: {doing}"
                self._doing = self._open(desc=text, bar_format="{desc} [{elapsed}]", leave=False)
                return
            if stage not in self._bars:
                unit = UNITS.get(stage, "step")
                self._bars[stage] = self._open(desc=stage, total=steps, unit=unit)
            bar = self._last = self._bars[stage]
            bar.update(done - bar.n)
            if done == steps:
                self._say(bar)
                bar.close()

    def _open(self, **settings: Any) -> tqdm:
        self._last = tqdm(file=self._stream if self._terminal else io.StringIO(), **settings)
        return self._last

    def _tick(self) -> None:
        """Keeps time moving where nothing else does; the thread's work."""
        # A stream that nobody reads any longer is no reason to stop.
        with contextlib.suppress(OSError, ValueError):
            while not self._closed.wait(TICK):
                with self._lock:
                    if self._terminal:
                        for bar in (*self._bars.values(), self._doing):
                            if bar is not None and not bar.disable:
                                bar.refresh()
                    elif self._last is not None and time.monotonic() - self._said >= SILENCE:
                        self._say(self._last)

    def _say(self, bar: tqdm) -> None:
        if not self._terminal:
            self._stream.write(f"{bar}\n")  # at once: other lines may come between two writes
            self._stream.flush()
            self._said = time.monotonic()
