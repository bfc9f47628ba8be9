"""Several processes as one program."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

from show1_jax.errors import InputError
from show1_jax.parallel import hosts

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, None), "need --coordinator"),
        (("auto", 2, 0), "finds --processes and --process itself"),
        (("localhost:1", None, None), "needs --processes N"),
        (("localhost:1", 2, 2), "from 0 to N - 1"),
        (("localhost:http", 2, 0), "cannot listen at this port"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message):
    with pytest.raises(InputError, match=message):
        hosts.join(*arguments, 1, preemptible=True)


def free_port():
    """A port that nobody listens at."""
    with contextlib.closing(socket.socket()) as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("process", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_stays_alone_says_so(process, tmp_path):
    arguments = (f"--coordinator=localhost:{free_port()}", "--processes=2", f"--process={process}")
    command = [sys.executable, "train.py", f"--workdir={tmp_path}", *arguments, "--join_limit=2"]
    begin = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "joined within 2 s" in done.stderr.splitlines()[-1]
    assert time.monotonic() - begin < 60
    assert not list(tmp_path.iterdir())


def test_a_taken_port_is_told():
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        coordinator = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match="the first process cannot listen at this port"):
            hosts.join(coordinator, 2, 0, 1, preemptible=True)


@pytest.mark.parametrize(("preemptible", "status"), [(False, -signal.SIGTERM), (True, 0)])
def test_who_does_not_ask_about_sigterm_ends_by_it(preemptible, status):
    text = (
        "import os, time\n"
        "from show1_jax.parallel import hosts\n"
        f"hosts.join('localhost:{free_port()}', 1, 0, 20, preemptible={preemptible})\n"
        "os.kill(os.getpid(), 15)\n"
        "time.sleep(1)"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, timeout=100, check=False)
    assert done.returncode == status


def test_alone_there_is_nobody_to_ask():
    assert hosts.first()
    assert hosts.gather({"a": 1}) == [{"a": 1}]
    hosts.wait("nobody")
    np.testing.assert_array_equal(hosts.fetch(np.arange(3)), [0, 1, 2])


@pytest.mark.slow
def test_what_the_first_does_alone_may_take_long():
    coordinator = f"localhost:{free_port()}"
    text = (
        "import sys, time\n"
        "from show1_jax.parallel import hosts\n"
        f"hosts.join({coordinator!r}, 2, int(sys.argv[1]), 60, preemptible=True)\n"
        "for _ in range(2):\n"
        "    with hosts.first_alone('twice'):\n"
        "        time.sleep(35 if hosts.first() else 0)\n"
        "print(hosts.gather(int(sys.argv[1])))"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", text, str(process)], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    statuses, outputs = end(running)
    assert statuses == [0, 0], outputs
    assert all("[0, 1]" in output for output in outputs), outputs


def test_several_processes_ask_about_steps_that_only_rise(monkeypatch):
    """Of one part after the other: JAX would never come to a step that is behind it."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    for _ in range(2):
        with hosts.Preemption() as preemption:
            for _ in range(3):
                preemption.due()
    assert len(asked) == 6
    assert asked == sorted(set(asked))


@pytest.fixture
def _interruptible():
    """Whoever started the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_wish_to_end_is_noticed_and_given_back(number):
    before = signal.getsignal(number)
    with hosts.Preemption() as preemption:
        assert not preemption.due()
        os.kill(os.getpid(), number)
        assert preemption.due()
        if number == signal.SIGINT:  # who insists does not wait
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with hosts.Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert not preemption.due()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def start(devices, **arguments):
    """Processes of `tests/parallel/host.py`, their output at hand."""
    count = arguments.pop("processes", 1)
    port = free_port()
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    running = []
    for process in range(count):
        join = [f"localhost:{port}", count, process] if count > 1 else [None] * 3
        text = json.dumps(arguments | {"join": join})
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.parallel.host", text], cwd=ROOT, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    return running


def end(running, limit=500):
    """Waits for processes: their exit statuses and what they printed."""
    outputs = [process.communicate(timeout=limit)[0] for process in running]
    return [process.returncode for process in running], outputs


def losses(workdir):
    """By step, of training and of validation."""
    text = (Path(workdir) / "keyframes" / "metrics.jsonl").read_text()
    found = {}
    for line in map(json.loads, text.splitlines()):
        found |= {(line["step"], name): line[name] for name in line if name.endswith("loss")}
    return found


def samples(workdir):
    """By step, the pictures of samples."""
    paths = (Path(workdir) / "keyframes" / "samples").glob("*.png")
    return {int(path.stem): np.asarray(Image.open(path)).astype(int) for path in paths}


def compare(workdir, straight):
    """Whether runs of the same settings came to the same."""
    expected, found = losses(straight), losses(workdir)
    assert len(expected) == 22
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5), key
    expected, found = samples(straight), samples(workdir)
    assert found.keys() == expected.keys() == {8, 16, 20}
    for step, picture in expected.items():
        assert np.abs(found[step] - picture).max() <= 2, step


@pytest.mark.slow
@pytest.mark.smoke
def test_two_processes_train_as_one_does(tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    for running in (
        start(1, workdir=one, mesh={"data": 1}),
        start(1, processes=2, workdir=two, mesh={"fsdp": 2}, text="step"),
    ):
        statuses, outputs = end(running)
        assert set(statuses) == {0}, outputs
    compare(two, one)


@pytest.mark.slow
def test_two_processes_train_as_one_does_whatever_happens(tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    statuses, outputs = end(start(1, workdir=one, mesh={"data": 1}))
    assert statuses == [0], outputs

    # One of two is killed: the other ends too, sooner or later.
    mesh = {"data": 2, "fsdp": 4}
    running = start(4, processes=2, workdir=two, mesh=mesh, send="SIGKILL", after=4, to=[1])
    assert running[1].wait(500) == -9
    with contextlib.suppress(subprocess.TimeoutExpired):
        running[0].wait(60)
    running[0].kill()
    end(running)
    # Both go on, until one is told to end: both end after the same step.
    running = start(
        4, processes=2, workdir=two, mesh=mesh, send="SIGTERM", after=8, to=[1], text="step"
    )
    statuses, outputs = end(running)
    assert statuses == [143, 143], outputs
    # One process goes on, then one on another mesh.
    statuses, outputs = end(start(8, workdir=two, mesh={"data": 8}, send="SIGTERM", after=16))
    assert statuses == [143], outputs
    statuses, outputs = end(start(8, workdir=two, mesh={"fsdp": 2, "tensor": 2}, text="step"))
    assert statuses == [0], outputs

    compare(two, one)
