"""Programs meet faults of buckets well; see `thirty_faults`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One of each program; nothing has to be made first.
QUICK = "^(forbidden to read convert|closed port sample|no bucket to read train)"


@pytest.mark.slow
@pytest.mark.parametrize("only", [pytest.param(QUICK, marks=pytest.mark.smoke, id="some"), ""])
def test_programs_meet_faults_well(only):
    command = [sys.executable, "-m", "tests.buckets.thirty_faults", f"--only={only}"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
