"""Whole programs on buckets: convert, train, `kill -9`, resume, sample."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from show1_jax.files import copy_folder, read_log
from show1_jax.paths import as_path
from tests.buckets.emulators import BUCKET, emulated, environment, reached
from tests.training.small import assert_same
from tests.training.test_kill import finish

ROOT = Path(__file__).parents[2]
PROMPT = "a small red circle moving left on a black background"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", pytest.param("s3", marks=pytest.mark.smoke)])
def test_a_run_in_a_bucket_is_that_on_a_disk(scheme, checkpoint, data_dir, tmp_path):
    steps = 30
    with emulated(scheme) as port, reached(scheme, port):
        cloud = as_path(f"{scheme}://{BUCKET}/a")
        copy_folder(as_path(checkpoint), cloud / "start")
        settings = environment(scheme, port) | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        }

        number = itertools.count()

        def start(workdir, start_from):
            command = [
                sys.executable, "train.py", "--config=tests/training/interrupted.py:keyframes",
                f"--config.checkpoint={start_from}", f"--config.train.keyframes.steps={steps}",
                f"--config.train.keyframes.data_dir={data_dir}", f"--workdir={workdir}",
            ]  # fmt: skip
            log = tmp_path / f"{next(number)}.txt"
            with log.open("w") as output:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=os.environ | settings, stdout=output, stderr=output
                )
            return process, log

        (tmp_path / "straight").mkdir()
        straight, log = start(tmp_path / "straight", checkpoint)
        assert straight.wait(600) == 0, log.read_text()
        (tmp_path / "straight" / "output.txt").write_text(log.read_text())
        expected = finish(straight, tmp_path / "straight", steps)

        process, log = start(cloud / "runs", cloud / "start")
        folder, begin = cloud / "runs" / "keyframes" / "checkpoints", time.monotonic()
        while not list(folder.glob("*/commit_success.txt")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < begin + 300, log.read_text()
            time.sleep(0.2)
        process.kill()
        process.wait()
        second, log = start(cloud / "runs", cloud / "start")
        assert second.wait(600) == 0, log.read_text()
        assert "goes on from step" in log.read_text()
        copy_folder(cloud / "runs", as_path(tmp_path / "runs"))
        for path in (tmp_path / "runs").rglob("metrics.jsonl"):
            path.write_bytes(read_log(cloud / "runs" / path.relative_to(tmp_path / "runs")))
        found = finish(second, tmp_path / "runs", steps)
        for name in ("state", "exported"):
            assert_same(found.pop(name), expected.pop(name))
        assert found == expected

        command = [
            sys.executable, "sample.py", "--config=tests/training/interrupted.py",
            f"--checkpoint={cloud / 'runs' / 'checkpoint'}", f"--out={cloud / 'out'}",
            "--stages=keyframes", "--steps=2", f"--prompt={PROMPT}",
        ]  # fmt: skip
        made = subprocess.run(
            command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
        metadata = json.loads((cloud / "out" / "000" / "metadata.json").read_text())
        assert metadata["prompt"] == PROMPT
        with (cloud / "out" / "000" / "keyframes.npy").open("rb") as file:
            assert np.isfinite(np.load(file)).all()
