"""A folder that one program uses."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from show1_jax.errors import InputError
from show1_jax.lock import locked

ROOT = Path(__file__).parents[1]
HOLD = """
import pathlib, sys, time
from show1_jax.lock import locked
with locked(pathlib.Path(sys.argv[1]), "--workdir"):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_killed_program_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(InputError, match=f"another program .process {holder.pid} on"):
                locked(tmp_path, "--workdir").__enter__()
        finally:
            holder.kill()
    with locked(tmp_path, "--workdir"):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_where_there_are_no_locks_a_run_goes_on(tmp_path, monkeypatch, caplog):
    def fail(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with locked(tmp_path, "--workdir"):
        assert f"{tmp_path} cannot be locked" in caplog.text
