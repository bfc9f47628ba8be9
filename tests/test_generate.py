"""From a prompt to files, through every stage of the checkpoint that comes with the project."""

import errno
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from show1_jax.checkpoints.released import StageFolder
from show1_jax.configs import tiny
from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import read_clip
from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.evaluation.metrics import psnr
from show1_jax.generate import free_folder, generate, merge_shards, parse_seeds, parse_shard
from show1_jax.invert import invert_clip
from show1_jax.media import from_uint8, to_uint8, write_mp4
from show1_jax.outputs import Outputs
from show1_jax.shapes.drawing import render
from show1_jax.shapes.scenes import Combination, random_scene
from show1_jax.stages import names
from show1_jax.stages.inversion import Noise, save_noise
from tests import programs
from tests.data.videos import read_video
from tests.parallel.test_hosts import free_port

ROOT = Path(__file__).parent.parent
PROMPTS = ["a small red circle moving left", "A large blue square  "]


def config(batch_size: int = 2):
    result = tiny.get_config()
    result.batch_size = batch_size
    result.keyframes.update(frames=2, height=8, width=16)
    result.interpolation.frames_per_gap = 3
    result.super_resolution.update(height=32, width=48, window=2)
    result.translation.update(height=32, width=64, strength=0.8)
    return result.lock()


def run(out: Path, prompts=(), settings=None, **changes) -> None:
    arguments = {
        "checkpoint": str(tiny.CHECKPOINT),
        "prompts_file": None,
        "seeds": [4],
        "stages": None,
        "overrides": {"steps": ["2"]},
    } | changes
    generate(settings or config(), prompts=prompts, out=out, **arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    run(out, PROMPTS)
    return out


def test_every_stage_of_every_prompt_is_there(made):
    for item, prompt in enumerate(PROMPTS):
        folder = made / f"{item:03d}"
        sizes = {
            "keyframes": (2, 8, 16, 3),
            "interpolation": (3, 8, 16, 3),
            "super_resolution": (3, 32, 48, 3),
            "translation": (3, 32, 64, 3),
        }
        for stage, shape in sizes.items():
            video, fps = read_video(folder / f"{stage}.mp4")
            assert video.shape == shape
            assert fps == pytest.approx(1.875 if stage == "keyframes" else 7.5)
            assert (folder / f"{stage}.gif").stat().st_size > 0
        assert (folder / "first_frame.png").is_file()
        text = (folder / "metadata.json").read_text()
        metadata = json.loads(text, parse_constant=pytest.fail)  # JSON has no Infinity
        assert metadata["prompt"] == prompt
        assert metadata["seed"] == 4
        assert list(metadata["stages"]) == list(names())
        assert metadata["stages"]["super_resolution"]["steps"] == 2
        assert metadata["stages"]["translation"]["solver"]["prediction"] == "v"
    assert not list(made.rglob("*tmp*"))


def test_results_are_clean_and_differ_between_prompts(made):
    first, second = (np.load(made / f"{i:03d}" / "keyframes.npy") for i in (0, 1))
    assert np.isfinite(first).all()
    assert np.abs(first).max() <= 1.5
    assert np.abs(first - second).max() > 1e-3


def test_alone_as_in_a_batch_and_in_a_padded_batch(made, tmp_path):
    run(tmp_path / "one", PROMPTS[1:], stages=["keyframes"])
    expected = np.load(made / "001" / "keyframes.npy")
    np.testing.assert_allclose(np.load(tmp_path / "one/000/keyframes.npy"), expected, atol=1e-4)


def test_going_on_gives_what_one_run_gives(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    (tmp_path / "out/000/super_resolution.npy").unlink()
    run(tmp_path / "out", seeds=None, stages=["super_resolution"])
    expected = np.load(made / "000" / "super_resolution.npy")
    actual = np.load(tmp_path / "out/000/super_resolution.npy")
    np.testing.assert_array_equal(actual, expected)


def test_doing_a_stage_again_removes_what_came_of_the_old_one(made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "out")
    other = {"stages": ["interpolation"], "overrides": {"steps": ["1"]}}
    why = r"\(interpolation: steps was 2 and is 1 now\): give --overwrite"
    with pytest.raises(InputError, match=r"8 result\(s\) that other settings made " + why):
        run(tmp_path / "out", **other)
    assert (tmp_path / "out/000/translation.mp4").is_file()
    run(tmp_path / "out", **other, overwrite=True)
    # Of two items: the interpolation again, and without it three stages after it.
    before, after = capsys.readouterr().out.splitlines()
    assert "8 result(s) that other settings made" in before
    assert before.endswith("which are replaced")
    assert (
        "2 result(s) made (2 of them again), 0 there already, 6 earlier result(s) removed" in after
    )
    folder = tmp_path / "out/000"
    kept = {path.name for path in folder.iterdir()}
    assert kept == {
        *(f"{stage}.{ending}" for stage in names()[:2] for ending in ("npy", "mp4", "gif")),
        "metadata.json",
    }
    stages = json.loads((folder / "metadata.json").read_text())["stages"]
    assert {name: stage["steps"] for name, stage in stages.items()} == {
        "keyframes": 2,
        "interpolation": 1,
    }


def test_a_refused_run_leaves_no_trace(tmp_path):
    bad(tmp_path, "starts from the result of", stages=["keyframes", "translation"])
    assert not (tmp_path / "out").exists()


def test_a_first_frame_of_another_size_is_refused(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    settings = config()
    settings.super_resolution.width = 64
    with pytest.raises(InputError, match="is 48x32, not 64x32"):
        run(tmp_path / "out", settings=settings, stages=["super_resolution"], overwrite=True)


def test_going_on_keeps_the_seed(made):
    with pytest.raises(InputError, match="other seeds"):
        run(made, seeds=[5], stages=["interpolation"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 0, "batch_size is 0"),
        ("dtype", "float16", "float16 needs a GPU"),
        ("keyframes.frames", 0, "keyframes.frames is 0"),
        ("keyframes.frames", 1, "interpolation needs at least 2"),
        ("keyframes.fps", 0.0, "keyframes.fps is 0.0"),
        ("keyframes.guidance", float("nan"), "finite number"),
        ("interpolation.frames_per_gap", 1, "at least 2"),
        ("super_resolution.window", 1, "at least 2"),
        ("super_resolution.noise_level", 1000, "within 0 to 999"),
        ("first_frame.noise_level", -1, "within 0 to 999"),
        ("translation.strength", 1.5, "strength 1.5"),
        ("translation.head_reading", "both", "head_reading is 'both'"),
    ],
)
def test_bad_values_are_found_before_anything_runs(tmp_path, key, value, message):
    settings = config().unlock()
    settings.update_from_flattened_dict({key: value})
    bad(tmp_path, message, settings=settings)
    assert not (tmp_path / "out").exists()


def test_without_a_first_frame_it_is_upscaled_bilinearly_and_said(made, tmp_path, caplog):
    shutil.copytree(made, tmp_path / "out")
    (tmp_path / "out/000/first_frame.npy").unlink()
    for item in ("000", "001"):
        (tmp_path / "out" / item / "super_resolution.npy").unlink()
    run(tmp_path / "out", seeds=None, stages=["super_resolution"])
    assert "No first_frame of item 0: it is upscaled bilinearly" in caplog.text

    def difference(item):
        now, before = (
            np.load(out / item / "super_resolution.npy") for out in (tmp_path / "out", made)
        )
        return np.abs(now - before).max()

    assert difference("000") > 1e-3
    # The item beside it in the batch is not touched by that.
    assert difference("001") < 1e-4


def lines(out):
    """The last line of each result that is there or failed, in the order of these lines."""
    last = {}
    for text in (out / "manifest.jsonl").read_text().splitlines():
        line = json.loads(text)
        assert isinstance(line.pop("time"), float)
        last.pop((line["item"], line["stage"]), None)
        if "removed" not in line:
            last[line["item"], line["stage"]] = line
    return list(last.values())


def test_a_job_makes_what_is_missing_and_nothing_else(made, tmp_path, monkeypatch):
    expected = lines(made)
    assert len(expected) == len(PROMPTS) * len(names())
    assert expected[0] == {"item": 0, "stage": "keyframes", "prompt": PROMPTS[0], "seed": 4}
    out = tmp_path / "out"
    shutil.copytree(made, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}

    def unexpected(*arguments):
        raise AssertionError("weights were read")

    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "params", unexpected)
        run(out, PROMPTS)
    assert {path: path.stat().st_mtime_ns for path in times} == times

    # As if it had been killed while the second item's translation was written.
    folder = out / "001"
    metadata = json.loads((folder / "metadata.json").read_text())
    translated = metadata["stages"].pop("translation")
    (folder / "metadata.json").write_text(json.dumps(metadata))
    before = read_video(folder / "translation.mp4")[0]
    (folder / "translation.mp4").write_bytes(b"half")
    encode, encoded = Engine.encode, []
    monkeypatch.setattr(Engine, "encode", lambda *of: (encoded.extend(of[1]), encode(*of))[1])
    run(out, PROMPTS)
    assert encoded == PROMPTS[1:]
    changed = {path for path, then in times.items() if path.stat().st_mtime_ns != then}
    assert changed == {folder / "translation.mp4"}
    after = read_video(folder / "translation.mp4")[0]
    # Made in another place of a batch, so up to rounding, of which the codec makes more.
    other = read_video(out / "000" / "translation.mp4")[0]
    assert np.abs(after.astype(int) - before).mean() < 1
    assert np.abs(after.astype(int) - other).mean() > 2
    again = json.loads((folder / "metadata.json").read_text())["stages"]["translation"]
    assert again == translated
    assert sorted(map(str, lines(out))) == sorted(map(str, expected))


def test_shards_make_each_item_once_and_one_tells_what_is_missing(made, tmp_path):
    out, both = tmp_path / "out", {"stages": ["keyframes"], "seeds": [4, 5]}
    with pytest.raises(InputError, match="holds no items of sample"):
        merge_shards(out)
    run(out, PROMPTS, shard=(1, 3), **both)
    assert sorted(path.name for path in out.iterdir()) == [
        "001",
        "items.jsonl",
        "manifest-1-of-3.jsonl",
    ]
    with pytest.raises(InputError, match=r"^3 of 4 item\(s\) in .* lack results: 0, 2, 3; run"):
        merge_shards(out)
    before = (out / "001" / "keyframes.npy").stat().st_mtime_ns
    for shard in range(3):
        run(out, PROMPTS, shard=(shard, 3), **both)
    assert (out / "001" / "keyframes.npy").stat().st_mtime_ns == before
    assert merge_shards(out) == f"4 item(s) in {out} are complete: keyframes"
    assert [line["item"] for line in lines(out)] == [0, 1, 2, 3]
    assert not list(out.glob("manifest-*"))
    np.testing.assert_allclose(
        np.load(out / "002/keyframes.npy"), np.load(made / "001/keyframes.npy"), atol=1e-4
    )
    run(out, [*PROMPTS, "another one"], stages=["keyframes"], seeds=[4])
    assert merge_shards(out) == f"5 item(s) in {out} are complete: keyframes"
    (out / "003" / "keyframes.npy").unlink()
    with pytest.raises(InputError, match=r"^1 of 5 item\(s\) in .* lack results: 3; run"):
        merge_shards(out)


@pytest.mark.parametrize("text", ["", "3", "3/3", "-1/3", "a/b", "1/0", "0/3/4"])
def test_bad_shards(text):
    with pytest.raises(InputError, match="--shard"):
        parse_shard(text)


def test_other_weights_make_it_again_and_a_copy_of_them_does_not(made, tmp_path):
    out, checkpoint = tmp_path / "out", tmp_path / "checkpoint"
    shutil.copytree(made, out)
    shutil.copytree(tiny.CHECKPOINT, checkpoint)
    before = (out / "000/keyframes.npy").stat().st_mtime_ns
    run(out, PROMPTS, checkpoint=str(checkpoint), stages=["keyframes"])
    assert (out / "000/keyframes.npy").stat().st_mtime_ns == before
    (checkpoint / "show-1-base" / "unet" / "params" / "new").write_text("another file")
    run(out, PROMPTS, checkpoint=str(checkpoint), stages=["keyframes"], overwrite=True)
    assert (out / "000/keyframes.npy").stat().st_mtime_ns != before
    assert {line["stage"] for line in lines(out)} == {"keyframes"}


def test_an_item_that_fails_is_noted_and_the_rest_goes_on(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    (out / "000/keyframes.npy").write_bytes(b"damaged")
    for item in ("000", "001"):
        (out / item / "interpolation.npy").unlink()
    with pytest.raises(InputError, match=r"1 of 2 item\(s\) failed: interpolation of item 0: .*np"):
        run(out, PROMPTS, stages=["interpolation"])
    failed, *others = (line for line in lines(out) if line["stage"] == "interpolation")
    assert "cannot be read" in failed["error"]
    assert not (out / "000/interpolation.npy").exists()
    assert [line["item"] for line in others] == [1]
    np.testing.assert_allclose(
        np.load(out / "001/interpolation.npy"), np.load(made / "001/interpolation.npy"), atol=1e-4
    )
    # Named again, the damaged keyframes are made again.
    run(out, PROMPTS, stages=["keyframes", "interpolation"])
    assert (out / "000/interpolation.npy").is_file()
    assert not any("error" in line for line in lines(out))


def test_a_batch_that_cannot_be_made_is_noted(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    np.save(out / "000/keyframes.npy", np.load(out / "000/keyframes.npy")[:, :, :8])
    for item in ("000", "001"):
        (out / item / "interpolation.npy").unlink()
    other = "interpolation of item 0: the result of keyframes is 2 frames of 8x8, not .* of 16x8"
    with pytest.raises(InputError, match=rf"1 of 2 item\(s\) failed: {other}"):
        run(out, PROMPTS, stages=["interpolation"])
    found = [line for line in lines(out) if line["stage"] == "interpolation"]
    assert [line["item"] for line in found if "error" in line] == [0]
    assert (out / "001/interpolation.mp4").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames.transpose(0, 2, 1, 3), "2 frames of 8x16, not 2 frames of 16x8"),
        (lambda frames: frames[..., 0], "an array"),
        (lambda frames: to_uint8(frames).astype(np.float32), "values up to .*give uint8"),
        (lambda frames: to_uint8(frames).astype(np.int32), "is int32: give uint8"),
        (lambda frames: frames * np.nan, "values up to nan"),
    ],
)
def test_earlier_results_that_are_no_such_pixels_are_refused(made, tmp_path, change, message):
    folder = tmp_path / "out" / "000"
    shutil.copytree(made / "000", folder, ignore=shutil.ignore_patterns("inter*"))
    first, _ = (made / "items.jsonl").read_text().splitlines()
    (folder.parent / "items.jsonl").write_text(first + "\n")
    np.save(folder / "keyframes.npy", change(np.load(folder / "keyframes.npy")))
    with pytest.raises(InputError, match=message):
        run(folder.parent, stages=["interpolation"], overwrite=True)
    assert not (folder / "interpolation.npy").exists()


def test_earlier_results_may_be_bytes(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    exact = np.load(out / "000/keyframes.npy")
    np.save(out / "000/keyframes.npy", to_uint8(exact))
    np.save(out / "001/keyframes.npy", from_uint8(to_uint8(np.load(out / "001/keyframes.npy"))))
    for item in ("000", "001"):
        (out / item / "interpolation.npy").unlink()
    run(out, stages=["interpolation"])
    for item in ("000", "001"):
        there, here = (np.load(folder / item / "interpolation.npy") for folder in (made, out))
        assert np.abs(there - here).max() < 0.1


def test_one_text_is_one_prompt_and_each_prompt_has_a_seed(made, tmp_path):
    run(tmp_path / "out", "a small red circle", stages=["keyframes"], overrides={"steps": ["1"]})
    assert [line["prompt"] for line in lines(tmp_path / "out")] == ["a small red circle"]
    engine = Engine(config(), str(tiny.CHECKPOINT), ["keyframes"])
    for prompts, seeds, message in (
        ("a circle", [0] * 8, "one text"),
        (["a circle"], [0, 1], "1 prompts and 2 seeds"),
    ):
        with pytest.raises(InputError, match=message):
            engine.run(prompts, seeds, Outputs(tmp_path / "no"))


def test_a_prompt_that_is_no_text_does_not_stop_the_others(tmp_path, made):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red \\udce9 circle"}\n' + json.dumps({"prompt": PROMPTS[1]}))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"1 of 2 item\(s\) failed: .* its prompt is no text"):
        run(out, (), prompts_file=prompts, stages=["keyframes"])
    expected = np.load(made / "001/keyframes.npy")
    np.testing.assert_allclose(np.load(out / "001/keyframes.npy"), expected, atol=1e-4)
    assert [line["item"] for line in lines(out) if "error" in line] == [0]


def test_prompts_of_a_file_may_have_seeds_of_their_own(made, tmp_path, caplog):
    prompts = tmp_path / "prompts.jsonl"
    records = [{"prompt": PROMPTS[0], "seed": 9, "id": 3}, {"prompt": PROMPTS[1]}]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = {"prompts_file": str(prompts), "stages": ["keyframes"], "overrides": {"steps": ["1"]}}
    bad(tmp_path, "has seeds of its own: leave --seeds out", (), **given)
    run(tmp_path / "out", **given, seeds=None)
    found = [(line["prompt"], line["seed"]) for line in lines(tmp_path / "out")]
    assert found == [(PROMPTS[0], 9), (PROMPTS[1], 0)]
    assert 'only "prompt" and "seed" are read, not id' in caplog.text
    for seed in ("-1", "1.5", "true", '"3"', "4294967296"):
        prompts.write_text(f'{{"prompt": "x", "seed": {seed}}}\n')
        bad(tmp_path / "no", "seed", (), **given, seeds=None)


def test_what_is_to_look_at_is_made_again_from_the_results(made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    exact = to_uint8(np.load(out / "001/keyframes.npy"))
    np.save(out / "001/keyframes.npy", exact)
    (out / "001/keyframes.mp4").unlink()
    lacking = ["keyframes.mp4", "first_frame.png", "interpolation.gif", "translation.gif"]
    for name in lacking:
        (out / "000" / name).unlink()

    def unexpected(*arguments):
        raise AssertionError("weights were read")

    monkeypatch.setattr(StageFolder, "params", unexpected)
    run(out, PROMPTS)
    for name in lacking[:-1]:  # the translation's is made of its mp4
        assert (out / "000" / name).read_bytes() == (made / "000" / name).read_bytes()
    assert (out / "000" / lacking[-1]).is_file()
    assert (out / "001/keyframes.mp4").read_bytes() == (made / "001/keyframes.mp4").read_bytes()


def test_a_folder_takes_more_seeds_and_makes_some_of_its_items(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    before = (out / "001/keyframes.npy").stat().st_mtime_ns
    stages = {"stages": ["keyframes"], "overrides": {"steps": ["keyframes=2"]}}
    run(out, PROMPTS[1:], seeds=[4, 7], **stages)
    found = {line["item"]: (line["prompt"], line["seed"]) for line in lines(out)}
    assert found == {0: (PROMPTS[0], 4), 1: (PROMPTS[1], 4), 2: (PROMPTS[1], 7)}
    assert (out / "001/keyframes.npy").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds other seeds, not 7 of 'a small red circle"):
        run(out, PROMPTS, stages=["interpolation"], seeds=[4, 7])
    # To go on, likewise: with one of its prompts.
    for item in ("000", "001"):
        (out / item / "interpolation.npy").unlink()
    run(out, PROMPTS[1:], stages=["interpolation"])
    assert not (out / "000/interpolation.npy").exists()
    assert (out / "001/interpolation.npy").is_file()


def test_a_result_made_again_with_the_same_settings_keeps_what_came_of_it(
    made, tmp_path, capsys, monkeypatch
):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    shutil.copytree(made, out)
    (out / "000/interpolation.npy").write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr("show1_jax.outputs._write", full)
        with pytest.raises(InputError, match="cannot be written"):
            run(out, PROMPTS)
    run(out, PROMPTS)
    assert "1 result(s) made (1 of them again), 9 there already;" in capsys.readouterr().out
    assert (out / "000/translation.mp4").read_bytes() == (made / "000/translation.mp4").read_bytes()


def test_what_does_not_fit_is_told_what_it_may_change(tmp_path, monkeypatch):
    def fail(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Engine, "_sample", fail)
    told = "keyframes does not fit the device's memory: set memory to low, make batch_size"
    bad(tmp_path, told, PROMPTS)


def test_other_prompts_go_beside_the_first_unless_told_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = {"stages": ["keyframes"], "overrides": {"steps": ["1"]}}
    run(None, PROMPTS[:1], **arguments)
    before = (tmp_path / "outputs/000/metadata.json").stat().st_mtime_ns
    run(None, PROMPTS[1:], **arguments)
    run(None, PROMPTS[:1], **arguments)
    run(None, PROMPTS[:1], **arguments, seeds=[5])
    found = sorted(tmp_path.glob("*/*/keyframes.mp4"))
    assert [path.parts[-3:-1] for path in found] == [
        ("outputs", "000"), ("outputs", "001"), ("outputs-2", "000")
    ]  # fmt: skip
    assert free_folder() == Path("outputs-3")
    assert (tmp_path / "outputs/000/metadata.json").stat().st_mtime_ns == before
    first, _, again, other = capsys.readouterr().out.splitlines()
    begin, made = "1 item(s) in outputs: keyframes;", "see outputs/000/keyframes.mp4"
    assert first == f"{begin} 1 result(s) made, 0 there already; {made}"
    assert again == f"{begin} 0 result(s) made, 1 there already; {made}"
    assert other.endswith("see outputs/001/keyframes.mp4")


def test_seeds_make_a_video_of_each_prompt_each(made, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    out = tmp_path / "out"
    run(out, (), prompts_file=str(prompts), seeds=[4, 7], stages=["keyframes"])
    found = [(line["prompt"], line["seed"]) for line in lines(out)]
    assert found == [(prompt, seed) for prompt in PROMPTS for seed in (4, 7)]
    np.testing.assert_allclose(
        np.load(out / "002/keyframes.npy"), np.load(made / "001/keyframes.npy"), atol=1e-4
    )


def test_a_folder_of_other_items_is_not_taken_over(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    shutil.rmtree(out / "000")
    with pytest.raises(InputError, match="out holds other prompts; give another --out"):
        run(out, ["something else", "and more"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file: give a folder"):
        run(tmp_path / "file", ["something else"])
    (out / "001" / "translation.mp4").unlink()
    run(out, PROMPTS)
    assert (out / "001" / "translation.mp4").is_file()


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("0-3,7", [0, 1, 2, 3, 7]), ("4294967295", [2**32 - 1])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "-1", "a", "3-1", "1,1", "4294967296", "0-3,2"])
def test_bad_seeds(text):
    with pytest.raises(InputError, match="--seeds"):
        parse_seeds(text)


def test_a_long_prompt_warns_and_runs(tmp_path, caplog):
    run(tmp_path / "out", ["red " * 1000, "short"], stages=["keyframes"])
    assert "Cut the last" in caplog.text
    assert (tmp_path / "out/000/keyframes.mp4").is_file()


def bad(tmp_path, match, prompts=("x",), **changes):
    with pytest.raises(InputError, match=match) as caught:
        run(tmp_path / "out", prompts, **changes)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_bad_prompts(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n  \n")
    bad(tmp_path, "holds no prompt", (), prompts_file=str(empty))
    bad(tmp_path, "cannot be read", (), prompts_file=str(tmp_path / "missing.txt"))
    bad(tmp_path, "give a --prompt", ())
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "x"}\n{"promt": "y"}\n')
    bad(tmp_path, r'\{"promt": "y"\}. is not like', (), prompts_file=str(lines))


def test_bad_stages_and_overrides(tmp_path):
    bad(tmp_path, "there is no stage 'keyframe'", stages=["keyframe"])
    bad(tmp_path, "no earlier stages to go on from", stages=["interpolation"])
    bad(tmp_path, "'many' is not a number", overrides={"steps": ["many"]})
    bad(tmp_path, "there is no stage 'first'", overrides={"guidance": ["first=2"]})
    bad(tmp_path, "steps", overrides={"steps": ["0"]})


def test_bad_sizes_name_the_multiple(tmp_path):
    for section, multiple in (("keyframes", 2), ("super_resolution", 8), ("translation", 16)):
        settings = config()
        settings[section].height = 17
        bad(tmp_path, f"{section}.height is 17.*multiple of {multiple}", settings=settings)


def test_bad_folders(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(tmp_path / "file" / "out", ["x"])
    bad(tmp_path, "model_index.json", checkpoint=str(tmp_path))
    bad(tmp_path, "convert first", checkpoint=str(ROOT / "tests" / "release"))


def test_other_prompts_are_not_mixed_into_a_folder(made):
    with pytest.raises(InputError, match="other prompts"):
        run(made, ["something else"])
    with pytest.raises(InputError, match="other prompts"):
        run(made, ["something else"], stages=["interpolation"])


def test_a_checkpoint_without_a_stage(tmp_path):
    shutil.copytree(tiny.CHECKPOINT, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint" / "IF-II-L-v1.0")
    with pytest.raises(InputError, match="the checkpoint has no first_frame"):
        run(
            tmp_path / "out", ["x"], checkpoint=str(tmp_path / "checkpoint"), stages=["first_frame"]
        )


def test_a_misplaced_denoiser_is_named(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny.CHECKPOINT, checkpoint)
    # Translation is trained last: what comes before can be sampled.
    shutil.rmtree(checkpoint / "show-1-sr2" / "unet")
    assert list(Engine(config(), checkpoint).stages) == names()[:4]
    (checkpoint / "show-1-interpolation" / "unet").rename(tmp_path / "unet")
    with pytest.raises(InputError, match=r"show-1-interpolation/unet/params is missing, though"):
        Engine(config(), checkpoint)
    assert list(Engine(config(), checkpoint, ["keyframes"]).stages) == ["keyframes"]


def test_the_command_line_shows_progress_and_nothing_else(tmp_path):
    command = [
        sys.executable, ROOT / "sample.py", "--prompt=a red circle", "--stages=keyframes",
        "--steps=1", f"--out={tmp_path}", "--config.keyframes.frames=2",
        "--config.keyframes.height=8", "--config.keyframes.width=16",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Of each what is done, and what took longer than some seconds, such as to check.
    said = {line.split(":")[0] for line in done.stderr.splitlines()}
    assert said - {"checkpoint"} == {"t5", "keyframes"}
    assert (tmp_path / "000/keyframes.mp4").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--stages", "keyframe", "--prompt", "x"],
            "error: --stages: there is no stage 'keyframe'",
        ),
        (["--config.keyframes.stepz=3", "--prompt", "x"], "stepz"),
        (["--config=tiny:nope", "--prompt", "x"], "there is no part 'nope' to train"),
        (["words without a flag"], "is not a flag"),
        (["--seed", "-1", "--prompt", "x"], "seed"),
        (["--config.keyframes.steps=few", "--prompt", "x"], "few"),
        (["--config=missing.py", "--prompt", "x"], "error: there is no file 'missing.py'"),
        (["--adapter=a.safetensors", "--stages=translation"], "are for the keyframes"),
        (["--adapter=a.safetensors", "--stages=keyframe"], "there is no stage 'keyframe'"),
        (["--invert=a.mp4", "--stages=keyframes,translation"], "--invert takes"),
        (["--invert=a.mp4", "--stages=sound"], "there is no stage 'sound'"),
        (["--invert=a.mp4", "--adapter=b", "--stages=translation"], "are for the keyframes"),
        (["--invert=", "--from-noise=", "--stages="], "give a --prompt"),
        (["--from-noise=a.npz", "--prompt=x"], "a.npz is no noise"),
        (["--adapter=a.safetensors=1", "--prompt=x"], "there is no adapter a.safetensors"),
        (["--json", "--prompt=x"], "--json"),
        (["--prompt=x", "--checkpoint=az://b/c"], "paths with az:// are not supported"),
        (["--prompts=az://b/p.txt"], "paths with az:// are not supported"),
        (["--prompt=x", "--adapter=az://b/a.safetensors=1"], "paths with az:// are not"),
        (["--from-noise=az://b/a.npz", "--prompt=x"], "paths with az:// are not supported"),
        (["--invert=a.mp4", "--prompt=x", "--steps=interpolation=3"], "--steps"),
    ],
)
def test_the_command_line_ends_in_a_clear_line(tmp_path, arguments, message):
    wrong = ("stepz", "is not a flag", "seed", "few", "--invert takes", "--json", "--steps")
    wrong += ("there is no stage", "error: --stages", "give a --prompt")
    done = programs.run(ROOT / "sample.py", *arguments, "--out", tmp_path / "out")
    assert done.returncode == (2 if message.startswith(wrong) else 1)
    # On a busy machine checking may take long enough to be said.
    said = (line for line in done.stderr.splitlines() if not line.startswith("checkpoint: "))
    (line,) = said
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", names()[1:])
def test_any_stage_makes_the_noise_of_a_clip_into_it(stage, tmp_path):
    file, out = tmp_path / "clip.mp4", tmp_path / "out"
    shape = Combination("small", "red", "circle", "left", "black")
    write_mp4(file, render(random_scene(shape, np.random.default_rng(0)), 9, 32, 64), 7.5)
    settings = config()
    settings.keyframes.frames = 3
    settings.translation.strength = 0.5
    given = (settings, str(tiny.CHECKPOINT), file, PROMPTS[0], tmp_path)
    exactness = invert_clip(*given, steps=["10"], name=stage, seed=3)
    assert exactness > 25
    own = Engine(settings, tiny.CHECKPOINT).stages[stage]
    clip = read_clip(file, ClipSpec(5, own.height, own.width, 7.5))
    # The noise says all but the text, whatever the seed and the strength.
    settings.from_noise = str(tmp_path / f"{stage}.noise.npz")
    settings.translation.strength = 1.0
    run(out, PROMPTS, settings, stages=[stage], overrides={})
    if stage == "translation":  # of which there is an mp4 alone, which is not exact
        made, margin = from_uint8(read_video(out / "000" / "translation.mp4")[0]), 1.5
    else:
        made, margin = np.load(out / "000" / f"{stage}.npy"), 0.1
        made = made if made.ndim == 4 else made[None]
    found = psnr(np.clip(made, -1, 1), clip[: len(made)], peak=2)
    assert found == pytest.approx(exactness, abs=margin)
    stages = json.loads((out / "000" / "metadata.json").read_text())["stages"]
    assert stages[stage]["steps"] == 10
    sample = ["--prompt=x", f"--from-noise={settings.from_noise}"]
    for arguments, message in (
        ([*sample, "--seeds=0-1"], "the same for all seeds"),
        ([*sample, f"--steps={stage}=3"], f"decides the steps of {stage}"),
        ([*sample, "--stages=keyframes"], f"noise of {stage}, which is not among"),
        (sample, f"noise of {stage} at other sizes"),
    ):
        done = programs.run(ROOT / "sample.py", *arguments, "--out", tmp_path / "no")
        assert message in done.stderr
    assert not (tmp_path / "no").exists()


def test_noise_is_followed_unless_something_else_is_asked_for(tmp_path):
    settings = config()
    for stage, shape in (("keyframes", (1, 2, 8, 16, 3)), ("interpolation", (1, 3, 8, 16, 3))):
        settings.from_noise = str(tmp_path / f"{stage}.npz")
        noise = np.zeros(shape, np.float32)
        frames = noise if stage == "interpolation" else None
        save_noise(Path(settings.from_noise), Noise(stage, noise, 3, 1.0, frames))
        engine = Engine(settings, tiny.CHECKPOINT)
        assert list(engine.stages) == names()[names().index(stage) :]
        assert not engine.loaded.inputs(stage)
        assert engine.loaded.noise_file == settings.from_noise
        # Noise that is given is of no file.
        given = engine.loaded.noise._replace(steps=5)
        other = Engine(settings, tiny.CHECKPOINT, noise=given).loaded
        assert (other.noise.steps, other.noise_file) == (5, "")
    settings.keyframes.guidance = settings.interpolation.guidance = 2.0
    # No item, so that all but sampling is done.
    with pytest.raises(InputError, match="give a --prompt"):
        run(tmp_path / "out", settings=settings, overrides={"guidance": ["keyframes=3"]})
    assert (settings.keyframes.guidance, settings.interpolation.guidance) == (3.0, 1.0)


@pytest.mark.slow
def test_a_job_that_is_killed_twice_makes_every_item_once(tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    words = [f"a small {color} circle moving left" for color in ("red", "blue", "green", "cyan")]
    texts = [f"{text}, number {i}" for text in words for i in range(2)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    stages = ("keyframes", "interpolation")
    small = [
        "--config.keyframes.frames=2", "--config.keyframes.height=8", "--config.keyframes.width=16",
        "--config.interpolation.frames_per_gap=3", "--config.batch_size=4", "--steps=2",
        f"--stages={','.join(stages)}",
    ]  # fmt: skip
    command = [
        sys.executable, str(ROOT / "sample.py"), *small, f"--prompts={prompts}", "--seeds=0-4",
        f"--out={out}",
    ]  # fmt: skip
    for wanted in (10, 50):  # items and stages that are finished when it is killed
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and (
            not (out / "manifest.jsonl").is_file() or len(lines(out)) < wanted
        ):
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()
        process.wait()
    before = {
        path: path.stat().st_mtime_ns
        for path in (out / f"{line['item']:03d}" / f"{line['stage']}.npy" for line in lines(out))
    }
    assert 50 <= len(before) < 40 * len(stages)
    subprocess.run(command, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = {(line["item"], line["stage"]) for line in lines(out)}
    assert len(lines(out)) == len(found) == 40 * len(stages)
    for item in (0, 17, 39):
        alone = tmp_path / f"alone{item}"
        programs.run(
            ROOT / "sample.py",
            *small,
            f"--prompt={texts[item // 5]}",
            f"--seed={item % 5}",
            f"--out={alone}",
        )
        for stage in stages:
            one, other = (
                to_uint8(np.load(path / f"{stage}.npy")).astype(int)
                for path in (alone / "000", out / f"{item:03d}")
            )
            assert np.abs(one - other).max() <= 1


@pytest.mark.slow
def test_processes_share_the_items(tmp_path):
    command = [
        sys.executable, str(ROOT / "sample.py"), "--prompt=a red circle", "--seeds=0-4",
        "--stages=keyframes", "--steps=2", f"--out={tmp_path}", "--processes=2",
        f"--coordinator=localhost:{free_port()}",
    ]  # fmt: skip
    processes = [subprocess.Popen([*command, f"--process={i}"]) for i in (0, 1)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert [(line["item"], line["seed"]) for line in lines(tmp_path)] == [(i, i) for i in range(5)]
    alone = tmp_path / "alone"
    programs.run(
        ROOT / "sample.py",
        "--prompt=a red circle",
        "--seeds=3",
        "--stages=keyframes",
        "--steps=2",
        f"--out={alone}",
    )
    one, other = (np.load(path / "keyframes.npy") for path in (tmp_path / "003", alone / "000"))
    np.testing.assert_allclose(one, other, atol=1e-5)
