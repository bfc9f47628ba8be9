"""Who is named as the one that all others wait for."""

import contextlib
import math
import re
import signal
import threading
import time

import pytest

from show1_jax.parallel import heartbeats
from show1_jax.parallel.heartbeats import COMPARED, ENDED, SILENT, STILL, Beat, Lookout
from tests.parallel.test_hosts import losses, start

STEP = 0.5  # seconds


class Processes:
    """Made-up processes, looked at again and again."""

    def __init__(self, count=3, seconds=STEP):
        self.seconds, self.lookout = seconds, Lookout()
        self.beats = {i: Beat(0, f"host-{i}", 1, "compiling", 0.0) for i in range(count)}

    def look(self, times, changes=None, frozen=(), steps=10):
        """Looks at processes that go on, but for the frozen ones; gives what is said, by look.

        Args:
          times: looks.
          changes: what some do instead of training.
          frozen: these do nothing at all.
          steps: from look to look, in all that have no changes.
        """
        said = {}
        for number in range(1, times + 1):
            for i, old in self.beats.items():
                if i not in frozen:
                    new = old._replace(number=old.number + 1, doing="training")
                    own = (changes or {}).get(i, {"step": old.step + steps})
                    self.beats[i] = new._replace(**own)
            texts = self.lookout.look(dict(self.beats), self.seconds)
            if texts:
                said[number] = [re.sub(r" for \d+ s, since ..:..:..", "", text) for text in texts]
        return said


def test_processes_that_train_are_not_worth_a_word():
    assert Processes().look(50) == {}


def test_a_frozen_process_is_named_within_a_minute_whatever_it_does():
    for doing in ("training", "data", "compiling", "saving", "validation"):
        processes = Processes()
        processes.look(3, {1: {"doing": doing}})
        said = processes.look(20, frozen=[1], steps=0)
        what = "waiting for data" if doing == "data" else doing
        step = processes.beats[1].step
        name = f"process 1 on host-1 (step {step}, {what}) has given no sign of life"
        assert said == {SILENT: [name]}
    assert SILENT * heartbeats.EVERY <= 45
    assert processes.look(1) == {
        1: [f"process 1 on host-1 (step {step + 10}, training) goes on after 105 s"]
    }
    assert processes.look(20) == {}


def test_all_that_freeze_are_named():
    processes = Processes()
    processes.look(3)
    processes.look(2, frozen=[1], steps=0)
    said = processes.look(20, frozen=[1, 2], steps=0)
    assert [text[:9] for texts in said.values() for text in texts] == ["process 1", "process 2"]


def test_one_that_waits_for_data_forever_is_named_and_those_that_wait_for_it_are_not():
    processes = Processes()
    processes.look(3)
    step = processes.beats[0].step
    hangs = {2: {"doing": "data"}, 0: {"step": step + 1}, 1: {"step": step + 1}}
    said = processes.look(30, hangs)
    name = f"process 2 on host-2 (step {step}, waiting for data)"
    assert said == {STILL: [f"{name} has kept the others waiting"]}
    assert STILL * heartbeats.EVERY + heartbeats.EVERY <= 60
    (text,) = processes.look(1)[1]
    assert "process 2 on host-2" in text
    assert text.endswith("goes on after 155 s")


def test_all_that_hang_in_one_step_are_no_ones_fault():
    processes = Processes()
    processes.look(3)
    step = processes.beats[0].step
    said = processes.look(50, steps=0)
    assert said == {STILL: [f"no process has made a step (step {step})"]}
    assert processes.look(50) == {}


@pytest.mark.parametrize("doing", ["compiling", "saving", "validation", "start", ENDED])
def test_what_may_take_long(doing):
    """In all of them, or in one, for which the others wait in the step after."""
    for processes_in_it in ([0, 1, 2], [0]):
        processes = Processes()
        processes.look(3)
        doings = {i: {"doing": doing} for i in processes_in_it}
        step = processes.beats[0].step + 1
        assert processes.look(200, {i: {"step": step} for i in range(3)} | doings) == {}
        assert processes.look(20) == {}


def test_one_that_has_ended_is_not_silent():
    processes = Processes()
    processes.look(3)
    processes.look(1, {1: {"doing": ENDED}})
    assert processes.look(100, frozen=[1]) == {}


def test_slow_steps_are_no_hanging():
    processes = Processes(seconds=60.0)
    for _ in range(10):
        assert processes.look(1) == {}
        assert processes.look(40, steps=0) == {}  # 200 s
    # Those 40 looks and 20 more are five steps.
    assert list(processes.look(61, steps=0)) == [20]


def waiting(processes, looks, waits, steps=10):
    """What is said while processes wait for their data, so many seconds a step."""
    said = []
    for _ in range(looks):
        beats = processes.beats
        changes = {
            i: {"step": beats[i].step + steps, "waited": beats[i].waited + steps * wait}
            for i, wait in waits.items()
        }
        said += [text for texts in processes.look(1, changes).values() for text in texts]
    return said


def test_a_straggler_is_named_once_within_a_minute():
    processes = Processes()
    assert waiting(processes, 10, {0: 0.01, 1: 0.01, 2: 0.01}) == []
    (text,) = waiting(processes, 2 * COMPARED, {0: 0.01, 1: 0.5, 2: 0.03})
    assert "process 1 on host-1 (step " in text
    assert "is a straggler: it waits 0." in text
    assert text.endswith("a step for its data, the others 0.02 s")
    assert 2 * COMPARED * heartbeats.EVERY <= 60
    assert waiting(processes, 100, {0: 0.01, 1: 0.5, 2: 0.03}) == []
    # Again, when it has kept up for a while.
    assert waiting(processes, 20, {0: 0.01, 1: 0.01, 2: 0.01}) == []
    assert len(waiting(processes, 20, {0: 0.01, 1: 0.5, 2: 0.03})) == 1


def test_waits_that_all_have_or_that_cost_nothing_make_no_straggler():
    assert waiting(Processes(), 50, {0: 0.3, 1: 0.5, 2: 0.4}) == []
    assert waiting(Processes(), 50, {0: 0.0, 1: 0.04, 2: 0.0}) == []  # 8 % of a step
    # Two steps are too few to tell.
    slow = Processes(seconds=60.0)
    slow.look(3)
    assert waiting(slow, COMPARED, {0: 0.0, 1: 50.0, 2: 0.0}, steps=0) == []


def test_others_name_the_first_if_it_is_silent_and_nothing_else():
    lookout = Lookout()
    beat = Beat(1, "host-0", 7, "training", 0.0)
    for number in range(100):
        assert lookout.look({0: beat._replace(number=number)}, math.inf) == []
    said = [lookout.look({0: beat}, math.inf) for _ in range(20)]
    (text,) = [text for texts in said for text in texts]
    assert text.startswith("process 0 on host-0 (step 7, training) has given no sign of life for ")


class Output:
    """What a process prints, as it does."""

    def __init__(self, process):
        self.text = ""
        self._process = process
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        with self._process.stdout as lines:
            for line in lines:
                self.text += line

    def wait_for(self, pattern, seconds):
        """Seconds until it has printed what matches."""
        begin = time.monotonic()
        while not re.search(pattern, self.text):
            assert time.monotonic() - begin < seconds, self.text
            time.sleep(0.1)
        return time.monotonic() - begin

    def kill(self):
        """Ends the process, and the thread that reads."""
        self._process.kill()
        self._process.wait()
        self._thread.join()


@contextlib.contextmanager
def two_processes(workdir, pause):
    """Two processes that train, each with so many seconds a batch, and their outputs."""
    arguments = {"workdir": str(workdir), "mesh": {"fsdp": 2}, "text": "step", "pause": pause}
    running = start(1, processes=2, **arguments)
    outputs = [Output(process) for process in running]
    try:
        yield running, outputs
    finally:
        for output in outputs:
            output.kill()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 0])
def test_a_stopped_process_is_named_and_goes_on(tmp_path, stopped):
    with two_processes(tmp_path, [0.5, 0.5]) as (running, outputs):
        outputs[0].wait_for("keyframes 4/20", 300)
        running[stopped].send_signal(signal.SIGSTOP)
        name = rf"process {stopped} on \S+ \(step \d+, \w+\) has given no sign of life"
        print(f"named after {outputs[1 - stopped].wait_for(name, 60):.1f} s")
        running[stopped].send_signal(signal.SIGCONT)
        outputs[1 - stopped].wait_for(rf"process {stopped} on .* goes on after", 60)
        assert [process.wait(300) for process in running] == [0, 0]
    texts = [output.text for output in outputs]
    assert "has given no sign" not in texts[stopped]
    assert "straggler" not in "".join(texts)
    assert {step for step, _ in losses(tmp_path)} == set(range(1, 21))
    assert re.search(r"keyframes: of 0:0\d:\d\d, \d+% was training, ", texts[0])


@pytest.mark.slow
def test_a_process_whose_data_is_slow_is_named(tmp_path):
    with two_processes(tmp_path, [0, 4.0]) as (_, outputs):
        outputs[0].wait_for("has made its first step", 300)
        name = r"process 1 on \S+ \(step \d+, .*\) is a straggler: it waits \d\.\d\d s a step"
        print(f"named after {outputs[0].wait_for(name, 60):.1f} s")
    text = outputs[0].text + outputs[1].text
    assert "has given no sign" not in text
    assert "has kept the others" not in text
