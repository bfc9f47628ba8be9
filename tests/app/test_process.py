"""The service as a process: what its page in the documentation says, kills, and many clients."""

import re
import signal
import subprocess
import sys

import pytest

from show1_jax.media import read_mp4
from tests.app.load import load, memory
from tests.app.serving import ROOT, serving

PAGE = ROOT / "docs" / "app.md"


@pytest.mark.slow
@pytest.mark.smoke
def test_the_session_of_the_documentation_works_line_by_line(tmp_path):
    (session,) = re.findall(r"```sh\n(url=.*?)```", PAGE.read_text(), re.DOTALL)
    (client,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with serving(tmp_path / "out", "--steps", "5") as server:
        script = session.replace("http://127.0.0.1:7860", server.url)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert '"status":"completed"' in done.stdout
        assert done.stdout.endswith('"deleted":true}')
        program = client.replace("http://127.0.0.1:7860", server.url) + "print(path)\n"
        video = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert read_mp4(video.stdout.splitlines()[-1]).shape == (29, 80, 144, 3)
        assert server.end(signal.SIGTERM) == 0
        assert "".join(server.errors).count("\n") <= 1, server.errors
    assert read_mp4(tmp_path / "video.mp4").shape == (29, 80, 144, 3)
    assert (tmp_path / "keyframes.gif").read_bytes()[:4] == b"GIF8"
    assert len([path for path in (tmp_path / "out").iterdir() if path.name[:2] == "20"]) == 1


@pytest.mark.slow
def test_many_clients_and_a_kill_lose_and_double_nothing(tmp_path):
    found = load(6, 3, tmp_path, "5")
    assert found["accepted"] == found["completed"] == 6
    assert found["doubled"] == 0
    assert found["exact"] <= 1
    assert found["clips"] <= 0.5


@pytest.mark.slow
def test_memory_and_compiled_programs_do_not_grow(tmp_path):
    (early, compiled), (late, compiled_late) = memory(100, tmp_path, "5")
    assert late <= 1.05 * early
    assert compiled_late == compiled
