"""Conversions that are cut off and go on, what they store once, and what they say meanwhile."""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from show1_jax.checkpoints import conversion
from show1_jax.checkpoints.export import export_copy
from show1_jax.checkpoints.lazy import LazyArray
from show1_jax.checkpoints.released import encoder_folder, find_stages
from show1_jax.checkpoints.store import (
    describe_params,
    fingerprint,
    load_params,
    save_params,
    visit_params,
)
from show1_jax.cli.convert import main
from show1_jax.errors import InputError
from tests.checkpoints.weights import pipeline, read_tensors, same_params, same_tensor
from tests.conftest import RELEASE

T5 = "show-1-base/text_encoder"
SHARING = ("show-1-interpolation", "show-1-sr1")
CLIP = "show-1-sr2/text_encoder"


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs any more."""


@pytest.fixture
def src(tmp_path) -> Path:
    """Four encoders, of which b and c are equal."""
    for name, change in (("a", 1), ("b", 0), ("c", 0), ("d", 2)):
        tensors = read_tensors(RELEASE / CLIP)
        tensors["text_model.final_layer_norm.bias"] += change
        pipeline(tmp_path / "src" / name, CLIP, tensors)
    return tmp_path / "src"


def cut_off(monkeypatch, after: int, cut) -> None:
    """Has a conversion cut off once it has written so many networks."""
    written = []

    def save(folder, params):
        if len(written) == after:
            cut()
        save_params(folder, params)
        written.append(folder)

    monkeypatch.setattr(conversion, "save_params", save)


def kill():
    raise Killed


def run(src, dst, *options) -> None:
    assert main([str(src), str(dst), *options]) == 0


def status(src, dst, *options) -> object:
    """What a conversion that must fail says, or its exit status if a signal stopped it."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        ended = main([str(src), str(dst), *options])
    print(said.getvalue(), end="", file=sys.stderr)
    assert ended
    return said.getvalue().splitlines()[-1] if ended == 1 else ended


def written(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- cut off ------------------------------------------------------------------


def test_a_killed_conversion_goes_on(src, tmp_path, monkeypatch, capsys):
    dst, partial = tmp_path / "dst", tmp_path / "dst.partial"
    cut_off(monkeypatch, 2, kill)
    with pytest.raises(Killed):
        run(src, dst)
    assert not dst.exists()
    monkeypatch.undo()
    before = written(partial / "checkpoint/a/text_encoder")
    capsys.readouterr()
    run(src, dst, "--verify")
    lines = capsys.readouterr().out.splitlines()
    assert ["finished earlier" in line for line in lines] == [True, True, True, False]
    assert all(line.endswith(", verified") for line in lines)
    assert written(dst / "a/text_encoder") == before
    assert not partial.exists()
    assert {path.name for path in dst.iterdir()} == {"a", "b", "c", "d"}
    straight = tmp_path / "straight"
    run(src, straight)
    for name in ("a/text_encoder", "b/text_encoder", "d/text_encoder"):
        ours, theirs = (load_params(folder / name / "params") for folder in (dst, straight))
        assert same_params(flatten_dict(ours), flatten_dict(theirs))


@pytest.fixture
def listened_to(number):
    """Programs that are started in the background ignore some signals, and so would this test."""
    before = signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, before)


@pytest.mark.usefixtures("listened_to")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_what_is_finished(number, src, tmp_path, monkeypatch, capsys):
    cut_off(monkeypatch, 1, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert status(src, tmp_path / "dst") == 128 + number
    assert signal.getsignal(number) is before
    partial = tmp_path / "dst.partial"
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped; 1 network(s) are finished in {partial}; run the same command" in said
    assert not (tmp_path / "dst").exists()
    assert {path.name for path in partial.iterdir()} == {"checkpoint", "conversion.json", "lock"}
    assert [path.name for path in partial.glob("checkpoint/*/*")] == ["text_encoder"]
    monkeypatch.undo()
    run(src, tmp_path / "dst")
    assert capsys.readouterr().out.count("finished earlier") == 1


def test_a_signal_before_anything_is_finished_leaves_nothing(src, tmp_path, monkeypatch, capsys):
    cut_off(monkeypatch, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert status(src, tmp_path / "new" / "dst") == 143
    assert "stopped; nothing is left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("change", ["weights", "options", "direction", "release"])
def test_only_what_the_same_conversion_made_is_kept(change, src, tmp_path, monkeypatch, capsys):
    cut_off(monkeypatch, 1, kill)
    with pytest.raises(Killed):
        run(src, tmp_path / "dst")
    monkeypatch.undo()
    capsys.readouterr()
    options = ["--dtype", "fp32"] if change == "options" else []
    if change == "weights":
        os.utime(next((src / "a/text_encoder").glob("*.bin")))
    elif change == "release":
        src = src.rename(tmp_path / "other")
    elif change == "direction":
        run(src, tmp_path / "ours")
        src, options = tmp_path / "ours", ["--to-torch"]
    run(src, tmp_path / "dst", *options, "--verify")
    assert "finished earlier" not in capsys.readouterr().out


def test_what_is_damaged_after_it_was_written_is_noticed(src, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "visit_params", lambda *_: kill())
    with pytest.raises(Killed):
        run(src, tmp_path / "dst", "--verify")
    monkeypatch.undo()
    params = tmp_path / "dst.partial/checkpoint/a/text_encoder/params"
    (params / "checksums.json").unlink()
    file = max(
        (path for path in params.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    line = status(src, tmp_path / "dst", "--verify")
    assert isinstance(line, str)
    assert "changed in the conversion" in line
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_torch_files_that_are_damaged_after_they_were_written_are_noticed(
    src, tmp_path, monkeypatch
):
    run(src, tmp_path / "ours")
    find_weights = conversion.find_weights

    def damaged(folder):
        found = find_weights(folder)
        stored = found.tensors["text_model.final_layer_norm.bias"]
        with open(stored.file, "r+b") as file:
            file.seek(stored.offset)
            byte = file.read(1)[0]
            file.seek(stored.offset)
            file.write(bytes([byte ^ 1]))
        return found

    monkeypatch.setattr(conversion, "find_weights", damaged)
    line = status(tmp_path / "ours", tmp_path / "dst", "--to-torch", "--verify")
    assert "text_model.final_layer_norm.bias changed in the conversion" in str(line)


def test_what_is_in_the_way_is_left_alone(src, tmp_path):
    partial = tmp_path / "dst.partial"
    partial.mkdir()
    (partial / "precious").touch()
    assert f"{partial} exists, but is not an unfinished conversion" in str(
        status(src, tmp_path / "dst")
    )
    assert (partial / "precious").exists()


def test_two_conversions_into_one_folder_are_not_mixed(src, tmp_path, monkeypatch):
    lines = []
    cut_off(monkeypatch, 1, lambda: lines.append(status(src, tmp_path / "dst")))
    run(src, tmp_path / "dst")
    (line,) = lines
    assert line.startswith(f"error: {tmp_path / 'dst.partial'} is in use by another program (")
    assert line.endswith("): wait until it ends, or give another DST")
    assert {path.name for path in (tmp_path / "dst").iterdir()} == {"a", "b", "c", "d"}


def test_a_full_disk_leaves_what_is_finished(src, tmp_path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    cut_off(monkeypatch, 1, full)
    line = str(status(src, tmp_path / "dst"))
    assert "cannot be written: No space left on device; 1 network(s) are finished in " in line
    assert (tmp_path / "dst.partial/checkpoint/a/text_encoder/params").is_dir()


# --- equal encoders -----------------------------------------------------------


def test_equal_encoders_are_stored_once(converted_release):
    for stage in SHARING:
        folder = converted_release / stage / "text_encoder"
        assert json.loads((folder / "params.json").read_text()) == {"same_as": T5}
        assert not (folder / "params").exists()


def test_what_reads_a_checkpoint_follows_the_reference(converted_release, tmp_path):
    stages = find_stages(converted_release)
    base, other = stages["keyframes"], stages["interpolation"]
    assert other.has("text_encoder")
    module = other.module("text_encoder", np.float32)
    ours, theirs = (
        flatten_dict(each.params("text_encoder", module, np.float32)) for each in (base, other)
    )
    assert same_params(ours, theirs)
    assert encoder_folder({"interpolation": other}, "t5") is other
    parts = ("text_encoder", "tokenizer")
    assert fingerprint(base.folder, parts) == fingerprint(other.folder, parts)
    # A copy elsewhere has its own.
    export_copy(tmp_path / "copy", "interpolation", other.folder / "text_encoder")
    copied = find_stages(tmp_path / "copy")["interpolation"]
    assert not (copied.folder / "text_encoder/params.json").exists()
    assert same_params(flatten_dict(copied.params("text_encoder", module, np.float32)), ours)
    assert fingerprint(copied.folder, parts[:1]) == fingerprint(base.folder, parts[:1])


def test_a_reference_goes_back_to_files_of_its_own(src, tmp_path):
    run(src, tmp_path / "ours", "--verify")
    assert (tmp_path / "ours/c/text_encoder/params.json").is_file()
    for source, name in (
        (tmp_path / "ours", "c/text_encoder"),
        (tmp_path / "ours/c", "text_encoder"),
    ):
        back = tmp_path / f"back-{source.name}"
        run(source, back, "--to-torch", "--verify")
        expected = read_tensors(src / "c/text_encoder")
        found = read_tensors(back / name)
        assert found.keys() == expected.keys()
        assert all(same_tensor(found[key], value) for key, value in expected.items())


def test_encoders_that_differ_in_one_bit_are_both_stored(src, tmp_path):
    file = next((src / "c/text_encoder").glob("*.bin"))
    stored = conversion.find_weights(file.parent).tensors["text_model.final_layer_norm.bias"]
    with file.open("r+b") as stream:
        stream.seek(stored.offset)
        byte = stream.read(1)[0]
        stream.seek(stored.offset)
        stream.write(bytes([byte ^ 1]))
    run(src, tmp_path / "dst")
    assert (tmp_path / "dst/c/text_encoder/params").is_dir()


@pytest.mark.parametrize(
    "other", ["../../show-1-base/text_encoder", "/etc/text_encoder", "..", "x", 3, None,
              "show-1-base/../../x", "show-1-sr1/text_encoder", "show-1-none/text_encoder"]
)  # fmt: skip
def test_references_stay_in_their_checkpoint(other, converted_release, tmp_path):
    stage = tmp_path / "checkpoint" / "show-1-sr1"
    shutil.copytree(converted_release / "show-1-sr1", stage)
    shutil.copytree(converted_release / T5, tmp_path / "show-1-base" / "text_encoder")
    (stage / "text_encoder/params.json").write_text(json.dumps({"same_as": other}))
    folder = find_stages(tmp_path / "checkpoint")["super_resolution"]
    module = folder.module("text_encoder", np.float32)
    with pytest.raises(InputError, match=r"must name a network|keep the folders of a"):
        folder.params("text_encoder", module, np.float32)
    assert "error: " in str(status(tmp_path / "checkpoint", tmp_path / "back", "--to-torch"))


# --- array by array -----------------------------------------------------------


def lazy(arrays: dict[str, np.ndarray], read: list[str]) -> dict[str, LazyArray]:
    def make(name, array):
        def reading():
            read.append(name)
            return array

        return LazyArray(array.shape, array.dtype, reading)

    return {name: make(name, array) for name, array in arrays.items()}


def test_lazy_arrays_become_an_ordinary_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "kernel": rng.standard_normal((5, 3), np.float32),
        "zeros": np.zeros(3, np.float16),
        "brain": rng.standard_normal(7).astype("bfloat16"),
        "number": np.array(3.5, np.float32),
    }
    read: list[str] = []
    save_params(tmp_path / "params", lazy(arrays, read))
    assert sorted(read) == sorted(arrays)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        plain = checkpointer.restore(tmp_path / "params")
    visited: dict[str, np.ndarray] = {}
    visit_params(tmp_path / "params", visited.__setitem__)
    described = describe_params(tmp_path / "params")
    for found in (plain, visited, load_params(tmp_path / "params")):
        assert same_params({key: np.asarray(value) for key, value in found.items()}, arrays)
    for name, array in arrays.items():
        assert (described[name].shape, described[name].dtype) == (array.shape, array.dtype)


def test_what_reading_an_array_raises_is_passed_on(tmp_path):
    def fail():
        raise InputError("a.bin is truncated")

    with pytest.raises(InputError, match=r"^a\.bin is truncated$"):
        save_params(tmp_path / "params", {"a": LazyArray((3,), np.dtype(np.float32), fail)})
    assert not (tmp_path / "params").exists()


def test_a_checkpoint_of_former_versions_goes_back(src, tmp_path):
    """Those hold `jax.Array`s, compressed."""
    run(src / "a", tmp_path / "ours")
    params = load_params(tmp_path / "ours/text_encoder/params")
    shutil.rmtree(tmp_path / "ours/text_encoder/params")
    save_params(tmp_path / "ours/text_encoder/params", params)
    run(tmp_path / "ours", tmp_path / "back", "--to-torch", "--verify")
    found, expected = (
        read_tensors(tmp_path / "back/text_encoder"),
        read_tensors(src / "a/text_encoder"),
    )
    assert all(same_tensor(found[key], value) for key, value in expected.items())


# --- progress -----------------------------------------------------------------


def test_release_is_whole_without_its_equal_encoders(converted_release):
    """What the tests of references rely on."""
    assert (RELEASE / "show-1-sr1/text_encoder").is_dir()
    assert (converted_release / T5 / "params").is_dir()
