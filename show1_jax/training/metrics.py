"""What a run tells of itself: numbers, a progress line, a picture of the loss."""

import contextlib
import json
import resource
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils.epath import Path
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from show1_jax.errors import InputError
from show1_jax.files import Log, read_log
from show1_jax.media import new_figure, write_figure

FILE = "metrics.jsonl"


class Metrics:
    """Writes numbers as JSON lines and for TensorBoard; raises InputError where that fails."""

    def __init__(self, folder: Path, step: int, active: bool = True):
        """Goes on after `step`: what an interrupted run wrote of later steps is dropped.

        Unless `active`, nothing is written: another process does.
        """
        self._path, self._active = folder / FILE, active
        self.earlier: list[dict[str, Any]] = []  # what was written before, of later steps as well
        if not active:
            return
        with self._writing():
            self.earlier = _read(self._path)
            kept = [line for line in self.earlier if line["step"] <= step]
            self._log = Log(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self._board = Board(folder / "tensorboard", step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Writes the numbers of a step."""
        if not self._active:
            return
        with self._writing():
            line = {"step": step, "unix_time": round(time.time(), 3), **numbers}
            self._log.add((json.dumps(line) + "\n").encode())
            self._board.write(step, *(summary.scalar(*number) for number in numbers.items()))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows an image `(height, width, 3)` uint8 on TensorBoard."""
        if not self._active:
            return
        with self._writing():
            self._board.write(step, summary.image(name, image, dataformats="HWC"))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self._path.parent} cannot be written: {error.strerror}") from error


class Board:
    """One of TensorBoard's event files, written when it is told to.

    tensorboardX's own writer has a thread, which a full disk ends: its queue
    fills, and the next call waits forever.
    """

    def __init__(self, folder: Path, step: int):
        """Begins a file beside those of earlier runs, of which steps from `step` on are dropped."""
        folder.mkdir(exist_ok=True)
        self._log = Log(folder / f"events.out.tfevents.{time.time_ns()}")
        start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
        self._events(Event(file_version="brain.Event:2"), start)

    def write(self, step: int, *summaries: Any) -> None:
        """Writes tensorboardX's summaries of a step."""
        self._events(*(Event(step=step, summary=each) for each in summaries))

    def _events(self, *events: Any) -> None:
        content = b""
        for event in events:
            event.wall_time = time.time()
            content += _record(event.SerializeToString())
        self._log.add(content)


def _record(data: bytes) -> bytes:
    """Data in the format of TFRecord files: its length, its content, and the checksums of both."""
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)


def progress_line(part: str, step: int, steps: int, numbers: dict[str, float]) -> str:
    """One line for people."""
    speed = numbers["steps_per_second"]
    left = int((steps - step) / speed) if speed else 0
    return (
        f"{part} {step:,}/{steps:,}  loss {numbers['loss']:.4f}  {speed:.2f} steps/s  "
        f"{numbers['examples_per_second']:.1f} examples/s  data {numbers['data_wait']:.1%}  "
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    )


def peak_memory() -> int:
    """Peak bytes: of the accelerator, or of the process where there is none."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def loss_curve(folder: Path) -> Path:
    """Draws a run's losses over its steps.

    Args:
      folder: of the run.

    Returns:
      The picture's path.

    Raises:
      InputError: if the run has written nothing, or matplotlib is not installed.
    """
    lines = _read(folder / FILE)
    if not lines:
        raise InputError(f"{folder / FILE} has no numbers yet")
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for name in ("loss", "validation_loss"):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=name.replace("_", " "), linewidth=1, marker="."
            )
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=folder.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = folder / "loss.png"
    write_figure(path, figure)
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that are whole: the last may have been cut off, others be damaged."""
    *lines, _ = read_log(path).split(b"\n")
    found = [numbers for line in lines if (numbers := _numbers(line))]
    if damaged := sum(map(bool, lines)) - len(found):
        logging.warning("%d damaged line(s) of %s are skipped", damaged, path)
    return found


def _numbers(line: bytes) -> dict[str, Any] | None:
    """What a line says; None if it is damaged."""
    try:
        numbers = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(numbers, dict) or type(numbers.get("step")) is not int:
        return None
    return numbers if all(type(x) in (int, float) for x in numbers.values()) else None
