"""What a person sees on stderr while a video is made."""

import io
import threading
import time

import pytest

from show1_jax import bars as module
from show1_jax.bars import Bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "TICK", 0.01)
    monkeypatch.setattr(module, "SILENCE", 0.02)


def wait_for(stream: io.StringIO, text: str) -> None:
    until = time.monotonic() + 10
    while text not in stream.getvalue():
        assert time.monotonic() < until, stream.getvalue()
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_what_takes_long_is_said_and_its_time_moves(kind, monkeypatch):
    stream = kind()
    monkeypatch.setattr("sys.stderr", stream)
    bars = Bars()
    bars.update("keyframes", 0, 1, "reading 3.5 GB")
    wait_for(stream, "keyframes: reading 3.5 GB [00:01]")
    bars.update("keyframes", 0, 2, "compiling")
    wait_for(stream, "keyframes: compiling [00:00]")
    bars.update("keyframes", 1, 2)
    wait_for(stream, "1/2")
    bars.update("keyframes", 2, 2)
    wait_for(stream, "keyframes: 100%")
    bars.close()
    lines = stream.getvalue().splitlines()
    assert all(line.strip("\r\x1b[A ").startswith("keyframes:") for line in lines if line.strip())


def test_a_short_run_is_a_line_for_each_stage_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 60.0)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    bars = Bars()
    bars.update("checkpoint", 0, 1, "checking")
    bars.clear()
    for stage in ("t5", "keyframes"):
        bars.update(stage, 0, 1, "reading 3.5 GB")
        bars.update(stage, 0, 2)
        bars.update(stage, 2, 2)
    bars.close()
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["t5", "keyframes"]


def test_nothing_is_left_behind(monkeypatch):
    before = threading.active_count()
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    silent = Bars(shown=False)
    assert threading.active_count() == before
    silent.update("keyframes", 1, 1)
    silent.close()
    bars = Bars()
    bars.update("keyframes", 0, 1, "compiling")
    bars.close()
    assert threading.active_count() == before
    assert stream.getvalue() == ""


def test_what_is_over_is_not_said_any_longer(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    bars = Bars()
    bars.update("checkpoint", 0, 1, "checking")
    wait_for(stream, "checkpoint: checking")
    bars.clear()
    before = stream.getvalue()
    time.sleep(0.1)
    bars.close()
    assert stream.getvalue() == before
