"""Where the wall time of a run went."""

import pytest

from show1_jax.training import goodput
from show1_jax.training.goodput import KINDS, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """Both clocks, which pass only when they are told to."""

    class Clock:
        now = 1000.0

        def spend(self, watch, **kinds):
            for kind, seconds in kinds.items():
                watch.enter(kind)
                self.now += seconds

    made = Clock()
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: made.now - 500)
    monkeypatch.setattr(goodput.time, "time", lambda: made.now)
    return made


def seconds(numbers):
    """Of each kind that took any."""
    shares = {kind: numbers.get(f"time/{kind}", numbers["goodput"]) for kind in KINDS}
    assert sum(shares.values()) == pytest.approx(1)
    taken = {kind: round(share * numbers["wall_seconds"], 6) for kind, share in shares.items()}
    return {kind: each for kind, each in taken.items() if each}


def line(clock, watch, step):
    """A line of metrics.jsonl."""
    return {"step": step, "unix_time": clock.now, **watch.read(1)}


def test_all_time_is_of_one_kind(clock):
    watch = Stopwatch()
    clock.now += 3
    clock.spend(watch, compiling=20)
    for _ in range(4):
        watch.count()
        clock.spend(watch, data=0.5, training=2)
    clock.spend(watch, saving=7)
    found = watch.read(3)
    expected = {"start": 3, "compiling": 20, "data": 2, "training": 8, "saving": 7}
    assert seconds(found) == expected
    speeds = {"steps_per_second": 0.4, "examples_per_second": 1.2, "data_wait": 0.2}
    assert {name: found[name] for name in speeds} == pytest.approx(speeds)
    # Speeds are of the time since they were read, shares of all.
    watch.count()
    clock.spend(watch, training=2)
    clock.spend(watch, validation=10)
    found = watch.read(3)
    assert seconds(found) == expected | {"training": 10, "validation": 10}
    speeds = {"steps_per_second": 0.5, "examples_per_second": 1.5, "data_wait": 0.0}
    assert {name: found[name] for name in speeds} == pytest.approx(speeds)
    assert watch.sentence() == (
        "of 0:00:52, 19% was training, 38% compiling, 19% validation, 13% saving, 6% start, 4% data"
    )


def test_time_is_added_up_over_restarts(clock):
    lines = []
    watch = Stopwatch()
    clock.spend(watch, start=5, training=10)
    lines.append(line(clock, watch, 10))  # and saved
    clock.spend(watch, training=20, data=4)
    lines.append(line(clock, watch, 30))
    lines.append({"step": 30, "unix_time": clock.now, "validation_loss": 1.0})
    clock.now += 60  # in which it is killed

    watch = Stopwatch()
    watch.go_on(lines, 10)
    clock.spend(watch, start=5, training=20)
    again = line(clock, watch, 30)
    expected = {"start": 10, "training": 30, "data": 4, "repeated": 20, "idle": 60}
    assert seconds(again) == expected
    assert again["steps_per_second"] == 0.0  # only those are counted that it made itself

    # Once more, from a checkpoint of the last step.
    clock.now += 30
    watch = Stopwatch()
    watch.go_on([lines[0], again], 30)
    assert seconds(watch.read(1)) == expected | {"idle": 90}


def test_a_run_that_had_saved_nothing_repeats_all(clock):
    watch = Stopwatch()
    clock.spend(watch, training=10)
    lines = [line(clock, watch, 10)]
    watch = Stopwatch()
    watch.go_on(lines, 0)
    assert seconds(watch.read(1)) == {"repeated": 10}


def test_lines_of_earlier_versions_tell_no_time(clock):
    watch = Stopwatch()
    watch.go_on([{"step": 1, "loss": 1.0, "steps_per_second": 1.0}], 1)
    clock.spend(watch, training=1)
    assert seconds(watch.read(1)) == {"training": 1}
