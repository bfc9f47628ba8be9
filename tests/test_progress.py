"""What a person sees on stderr while a video is made or a checkpoint is converted."""

import contextlib
import io
import threading
import time

import pytest

from show1_jax import progress as module
from show1_jax.errors import Preempted
from show1_jax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(module, "LOG_SECONDS", 0.02)


def wait_for(stream: io.StringIO, text: str) -> None:
    until = time.monotonic() + 10
    while text not in stream.getvalue():
        assert time.monotonic() < until, stream.getvalue()
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_long_work_is_shown_and_its_time_moves(kind, monkeypatch):
    stream = kind()
    monkeypatch.setattr("sys.stderr", stream)
    progress = Progress()
    progress.update("keyframes", 0, 1, "reading 3.5 GB")
    wait_for(stream, "keyframes: reading 3.5 GB [00:01]")
    progress.update("keyframes", 0, 2, "compiling")
    wait_for(stream, "keyframes: compiling [00:00]")
    progress.update("keyframes", 1, 2)
    wait_for(stream, "1/2")
    progress.update("keyframes", 2, 2)
    wait_for(stream, "keyframes: 100%")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert all(line.strip("\r\x1b[A ").startswith("keyframes:") for line in lines if line.strip())


def test_a_short_run_writes_one_line_per_stage_to_a_log(monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 60.0)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    progress = Progress()
    progress.update("checkpoint", 0, 1, "checking")
    progress.clear()
    for stage in ("t5", "keyframes"):
        progress.update(stage, 0, 1, "reading 3.5 GB")
        progress.update(stage, 0, 2)
        progress.update(stage, 2, 2)
    progress.close()
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["t5", "keyframes"]


def test_close_ends_the_thread(monkeypatch):
    before = threading.active_count()
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    silent = Progress(shown=False)
    assert threading.active_count() == before
    silent.update("keyframes", 1, 1)
    silent.close()
    progress = Progress()
    progress.update("keyframes", 0, 1, "compiling")
    progress.close()
    assert threading.active_count() == before
    assert stream.getvalue() == ""


def test_clear_stops_the_lines(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    progress = Progress()
    progress.update("checkpoint", 0, 1, "checking")
    wait_for(stream, "checkpoint: checking")
    progress.clear()
    before = stream.getvalue()
    time.sleep(0.1)
    progress.close()
    assert stream.getvalue() == before


def test_a_log_gets_lines_even_when_nothing_moves():
    stream = io.StringIO()
    progress = Progress(stream=stream)
    with contextlib.closing(progress), progress.bar("unet", 4000):
        progress.add(1000)
        deadline = time.monotonic() + 10
        while stream.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("unet: ") and "1.00k/4.00k" in line for line in lines)
    assert "\r" not in stream.getvalue()


def test_many_short_bars_are_shown_together():
    stream = io.StringIO()
    progress = Progress(stream=stream)
    deadline = time.monotonic() + 10
    with contextlib.closing(progress):
        while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            with progress.bar("unet", 10):
                time.sleep(0.03)
    assert stream.getvalue().count("\n") >= 2


def test_a_short_bar_writes_nothing_to_a_log():
    stream = io.StringIO()
    with contextlib.closing(Progress(stream=stream)) as progress, progress.bar("unet", 10):
        pass
    assert stream.getvalue() == ""


def test_check_can_stop_the_work():
    def stop():
        raise Preempted

    with pytest.raises(Preempted), Progress(stream=io.StringIO(), check=stop).bar("unet", 1):
        pass
