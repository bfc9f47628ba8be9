import json
import struct
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from show1_jax.errors import InputError
from show1_jax.training.metrics import Metrics, loss_curve, peak_memory, progress_line
from tests.conftest import largest_file


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        assert line.pop("unix_time") == pytest.approx(time.time(), abs=600)
    return found


def events(folder):
    """What TensorBoard would read: events of all files in their order."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            size = struct.unpack("Q", content[:8])[0]
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def write(folder, after, steps, value=1.0):
    log = Metrics(folder, after)
    for step in steps:
        log.write(step, {"loss": value})


def test_what_an_interrupted_run_wrote_after_its_checkpoint_is_dropped(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut off
    write(tmp_path, 2, [3, 4], value=2.0)
    assert lines(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 2.0},
        {"step": 4, "loss": 2.0},
    ]
    # TensorBoard drops what comes before a start, from its step on.
    shown = []
    for event in events(tmp_path):
        if event.HasField("session_log"):
            assert event.session_log.status == event.session_log.START
            shown = [pair for pair in shown if pair[0] < event.step]
        shown += [(event.step, value.simple_value) for value in event.summary.value]
    assert shown == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_damaged_lines_are_skipped_and_counted(tmp_path, caplog):
    write(tmp_path, 0, [1, 2])
    damaged = (b"", b"\0" * 20, b'{"step": 1', b"[]", b'{"loss": 1.0}', b'{"step": "1"}',
               b'{"step": 2, "loss": "\xff"}', b"[" * 100_000)  # fmt: skip
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.writelines(line + b"\n" for line in damaged)
    write(tmp_path, 2, [3])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    (record,) = caplog.records
    message = f"7 damaged line(s) of {tmp_path}/metrics.jsonl are skipped"  # one is empty
    assert record.getMessage() == message
    loss_curve(tmp_path)
    assert len(caplog.records) == 1


def test_pictures_are_on_tensorboard(tmp_path):
    log = Metrics(tmp_path, 0)
    log.picture(3, "samples", np.zeros((4, 6, 3), np.uint8))
    (event,) = [event for event in events(tmp_path) if event.summary.value]
    (value,) = event.summary.value
    assert (event.step, value.tag) == (3, "samples")
    assert (value.image.height, value.image.width) == (4, 6)


def test_a_full_disk_is_one_line(tmp_path):
    log = Metrics(tmp_path, 0)
    log.write(1, {"loss": 1.0})
    with largest_file(100):
        with pytest.raises(InputError, match=f"^{tmp_path} cannot be written: File too large$"):
            log.picture(2, "samples", np.zeros((4, 6, 3), np.uint8))
        with pytest.raises(InputError, match="File too large"):
            log.write(2, {"loss": 1.0, "grad_norm": 1.0, "a long name of a number": 1.0})
    write(tmp_path, 1, [2])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("step", "speed", "expected"),
    [
        (1200, 0.5, "0.50 steps/s  8.0 examples/s  data 12.3%  0:30:00 left"),
        (2100, 0.0, "0.00 steps/s  8.0 examples/s  data 12.3%  0:00:00 left"),
        (99, 0.01, "0.01 steps/s  8.0 examples/s  data 12.3%  55:35:00 left"),
    ],
)
def test_progress_line(step, speed, expected):
    numbers = {
        "loss": 0.123456,
        "steps_per_second": speed,
        "examples_per_second": 8.0,
        "data_wait": 0.1234,
    }
    line = progress_line("keyframes", step, 2100, numbers)
    assert line == f"keyframes {step:,}/2,100  loss 0.1235  {expected}"


def test_peak_memory_is_in_bytes():
    assert 2**26 < peak_memory() < 2**40


def test_loss_curve(tmp_path):
    log = Metrics(tmp_path, 0)
    for step in range(1, 20):
        log.write(step, {"loss": 1 / step, "grad_norm": 1.0})
    log.write(19, {"validation_loss": 0.1})
    path = loss_curve(tmp_path)
    assert path == tmp_path / "loss.png"
    picture = np.asarray(Image.open(path).convert("RGB"))
    # Two curves in different colours.
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3) if np.ptp(pixel.astype(int)) > 100}
    assert len(colours) > 1


def test_there_is_no_curve_of_an_empty_run(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl has no numbers yet"):
        loss_curve(tmp_path)
    write(tmp_path, 0, [])
    with pytest.raises(InputError, match=r"metrics\.jsonl has no numbers yet"):
        loss_curve(tmp_path)


def test_a_curve_without_matplotlib_says_how_to_get_it(tmp_path, monkeypatch):
    write(tmp_path, 0, [1])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        loss_curve(tmp_path)
