"""The release at its true sizes: minutes, and 55 GB of disk."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.checkpoints.real_sizes import DISK_BYTES, EQUAL_T5, T5, build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAX_MEMORY = 3 * 2**30
MAX_SILENCE = 12  # seconds; a machine that is busy draws late


class Converted(NamedTuple):
    """A conversion that was run as a user does, and what was seen of it."""

    source: Path
    checkpoint: Path
    lines: list[str]
    memory: int
    silence: float


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The release, converted with --verify; other tests of true sizes start from it."""
    folder = tmp_path_factory.mktemp("real")
    if shutil.disk_usage(folder).free < DISK_BYTES:
        pytest.skip(f"{folder} has no room for {DISK_BYTES / 1e9:.0f} GB")
    try:
        build(folder / "source")
        yield _convert(folder / "source", folder / "checkpoint")
    finally:
        shutil.rmtree(folder)


def _convert(source: Path, checkpoint: Path) -> Converted:
    process = subprocess.Popen(
        [sys.executable, "-m", "show1_jax.convert", str(source), str(checkpoint), "--verify"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    lines: list[str] = []
    times = [time.monotonic()]

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            times.append(time.monotonic())

    listener = threading.Thread(target=listen)
    listener.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    listener.join()
    assert process.returncode == 0, lines[-1]
    silence = max(after - before for before, after in itertools.pairwise(times))
    return Converted(source, checkpoint, lines, usage.ru_maxrss * 1024, silence)


def test_every_network_is_converted_and_verified(converted):
    done = [line for line in converted.lines if line.endswith(", verified")]
    assert len(done) == 10
    assert f"{T5}: 4,762,310,656 parameters, verified" in done
    for name in EQUAL_T5:
        assert f"{name}: 4,762,310,656 parameters, the same as {T5}, stored once, verified" in done
        assert not (converted.checkpoint / name / "params").exists()


def test_memory_does_not_grow_with_the_network(converted):
    assert converted.memory <= MAX_MEMORY


def test_it_is_never_silent_for_long(converted):
    assert converted.silence <= MAX_SILENCE
