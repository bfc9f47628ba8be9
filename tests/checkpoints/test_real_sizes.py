"""The release at its true sizes: minutes, and 55 GB of disk."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from show1_jax.stages import names
from tests.checkpoints.real_sizes import DISK_BYTES, EQUAL_T5, T5, build
from tests.text import t5_xxl

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAX_MEMORY = 3 * 2**30
MAX_MEMORY_OF_SAMPLING = 12 * 2**30
MAX_SILENCE = 12  # seconds; a machine that is busy draws late


class Ran(NamedTuple):
    """What was seen of a command that was run as a user does."""

    lines: list[str]
    memory: int
    silence: float


class Converted(NamedTuple):
    """A conversion, and what was seen of it."""

    source: Path
    checkpoint: Path
    ran: Ran


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
    ran = _run("-m", "show1_jax.convert", source, checkpoint, "--verify")
    return Converted(source, checkpoint, ran)


def _run(*arguments: str | Path) -> Ran:
    """Runs Python."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
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
    return Ran(lines, usage.ru_maxrss * 1024, silence)


def test_every_network_is_converted_and_verified(converted):
    done = [line for line in converted.ran.lines if line.endswith(", verified")]
    assert len(done) == 10
    assert f"{T5}: 4,762,310,656 parameters, verified" in done
    for name in EQUAL_T5:
        assert f"{name}: 4,762,310,656 parameters, equal to {T5}, stored once, verified" in done
        assert not (converted.checkpoint / name / "params").exists()


def test_memory_does_not_grow_with_the_network(converted):
    assert converted.ran.memory <= MAX_MEMORY


def test_it_is_never_silent_for_long(converted):
    assert converted.ran.silence <= MAX_SILENCE


def test_t5_encodes_in_little_memory(converted):
    measured = t5_xxl.measure((converted.checkpoint / T5).parent)
    print(measured)
    assert measured.memory <= t5_xxl.MAX_MEMORY


def test_every_stage_runs_in_the_memory_of_a_small_machine(converted, tmp_path):
    """Two steps of each with frames as small as the networks take, in the default dtype."""
    sizes = {
        "keyframes": {"frames": 2, "height": 16, "width": 16},
        "interpolation": {"frames_per_gap": 3},
        "super_resolution": {"height": 32, "width": 32},
        "translation": {"height": 64, "width": 64, "strength": 1.0},
    }
    changes = [
        f"--config.{stage}.{key}={value}"
        for stage, section in sizes.items()
        for key, value in section.items()
    ]
    ran = _run(
        ROOT / "sample.py",
        "--config=configs/show1.py",
        f"--checkpoint={converted.checkpoint}",
        "--prompt=a panda besides the waterfall is holding a sign that says show 1",
        "--steps=2",
        *changes,
        f"--out={tmp_path}",
    )
    assert ran.memory <= MAX_MEMORY_OF_SAMPLING
    assert ran.silence <= MAX_SILENCE
    metadata = json.loads((tmp_path / "000" / "metadata.json").read_text())
    assert {stage["dtype"] for stage in metadata["stages"].values()} == {"float32"}
    assert list(metadata["stages"]) == list(names())
    for stage in names()[:-1]:
        assert np.isfinite(np.load(tmp_path / "000" / f"{stage}.npy")).all()
    assert (tmp_path / "000" / "translation.mp4").is_file()
