"""The public API: what the README shows works as it stands there, and what it promises holds."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import show1_jax
from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import read_clip
from show1_jax.errors import InputError
from show1_jax.evaluation.metrics import psnr
from show1_jax.media import read_mp4, to_uint8, write_mp4
from show1_jax.shapes.drawing import render
from show1_jax.shapes.judge import measure
from show1_jax.shapes.scenes import Combination, Scene, difference
from show1_jax.stages.sampling import advance

ROOT = Path(__file__).parents[1]
SHAPE = Combination("small", "red", "circle", "left", "black")
PROMPT = "a small red circle moving left on a black background"
(BLOCK,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """What the README's block leaves, word for word, in a folder of its own."""
    folder, found = tmp_path_factory.mktemp("door"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(BLOCK, found)
    assert found["prompts"] == [PROMPT]
    return found | {"folder": folder}


def assert_shows_shape(video):
    """Asks the judge of moving shapes."""
    assert not difference(measure(video.frames, 144 / 80 / 1.6).combination, SHAPE)


def test_every_seed_makes_a_video_that_shows_its_prompt(door):
    videos = door["videos"]
    assert [(video.prompt, video.seed) for video in videos] == [(PROMPT, 0), (PROMPT, 1)]
    for video in videos:
        assert video.frames.shape == (29, 80, 144, 3)
        assert video.frames.dtype == np.uint8
        assert video.fps == 7.5
        assert_shows_shape(video)
    assert np.abs(videos[0].frames.astype(int) - videos[1].frames).max() > 50
    assert list(videos[0].stages) == [stage.name for stage in show1_jax.STAGES]
    assert videos[0].stages["keyframes"].shape == (8, 10, 16, 3)
    assert videos[0].stages["first_frame"].shape == (40, 64, 3)


@pytest.mark.gpu
def test_gpus_make_videos_that_show_their_prompt():
    for video in show1_jax.load()(PROMPT, seeds=[0, 1]):
        assert_shows_shape(video)


def test_a_video_is_saved_and_shows_itself(door, tmp_path):
    video = door["videos"][0]
    saved = read_mp4(door["folder"] / "circle.mp4")
    assert saved.shape == video.frames.shape
    assert np.abs(saved.astype(int) - video.frames).mean() < 5
    video.save(tmp_path / "circle.gif")
    assert (tmp_path / "circle.gif").stat().st_size > 1000
    with pytest.raises(InputError, match=r"circle.avi is neither .mp4 nor .gif"):
        video.save(tmp_path / "circle.avi")
    assert 'src="data:video/mp4;base64,' in video._repr_html_()
    assert "29 frames of 144x80" in repr(video)


def test_what_one_call_changes_is_of_that_call_alone(door):
    options = {"steps": {"keyframes": 20}, "guidance": {"keyframes": 3.0}, "progress": False}
    (fewer,) = door["cascade"](PROMPT, **options, stop_after="interpolation")
    assert list(fewer.stages) == ["keyframes", "interpolation"]
    assert fewer.frames.shape == (29, 10, 16, 3)
    assert np.abs(fewer.stages["keyframes"] - door["videos"][0].stages["keyframes"]).max() > 0.01
    assert door["cascade"].config.keyframes.guidance == 2.0


def test_a_stage_starts_from_what_it_is_given(door):
    video, frames = door["videos"][0], door["frames"]
    cascade, flat = door["cascade"], np.full((8, 10, 16, 3), 128, np.uint8)
    (again,) = cascade(PROMPT, start={"interpolation": frames}, stop_after="first_frame")
    assert list(again.stages) == ["interpolation", "first_frame"]
    for name, made in again.stages.items():
        np.testing.assert_array_equal(made, video.stages[name])
    (other,) = cascade(PROMPT, start={"interpolation": flat}, stop_after="interpolation")
    assert np.abs(other.frames.astype(int) - 128).mean() < 30


def test_another_number_of_prompts_compiles_nothing(door):
    cascade = door["cascade"]
    compiled = advance._cache_size()
    prompts = [PROMPT, "a large blue square moving up on a white background", "a green triangle"]
    videos = cascade(prompts, seeds=5, stop_after="keyframes")
    assert [video.prompt for video in videos] == prompts
    assert advance._cache_size() == compiled
    alone = cascade(prompts[1], seeds=5, stop_after="keyframes")
    np.testing.assert_array_equal(alone[0].frames, videos[1].frames)


def test_results_come_as_they_are_made_and_leave_no_mesh_behind(door):
    stream = door["cascade"].stream(PROMPT, seeds=[0, 1], stop_after="interpolation")
    seen = []
    for result in stream:
        seen.append((result.item, result.stage, result.seed))
        assert jax.sharding.get_abstract_mesh().empty
        expected = door["videos"][result.item].stages[result.stage]
        np.testing.assert_array_equal(to_uint8(result.frames), to_uint8(expected))
    assert seen == [(i, stage, i) for stage in ("keyframes", "interpolation") for i in (0, 1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [3]}, "a prompt is 3, which is no text"),
        ({"seeds": -1}, "a seed is -1: give whole numbers"),
        ({"seeds": []}, "at least one prompt and one seed"),
        ({"steps": {"keyfames": 3}}, "there is no stage 'keyfames'"),
        ({"steps": 2.5}, "steps of keyframes is 2.5: give a whole number"),
        ({"guidance": {"keyframes": "much"}}, "guidance of keyframes is 'much'"),
        ({"stop_after": "sound"}, "there is no stage 'sound'"),
        ({"start": {"keyframes": np.zeros(3)}}, "keyframes starts from the prompt alone"),
        (
            {"start": {"interpolation": np.zeros((3, 4))}},
            r"an array \(3, 4\): give \(8, 10, 16, 3\)",
        ),
        (
            {"start": {"interpolation": np.full((8, 10, 16, 3), 9.0)}},
            "has values up to 9: give uint8, or floats",
        ),
        (
            {"start": {"translation": np.zeros((1, 2, 2, 3))}, "stop_after": "keyframes"},
            "leave no stage to run",
        ),
        (
            {"start": {"interpolation": {"first_frame": np.zeros(3)}}},
            "interpolation does not start from the result of first_frame",
        ),
        (
            {"start": {name: np.zeros(3) for name in ("first_frame", "super_resolution")}},
            "start gives the result of interpolation twice",
        ),
        (
            {"start": {"super_resolution": np.zeros((29, 9, 16, 3))}},
            "29 frames of 16x9, not 29 frames of 16x10: give the sizes of the config",
        ),
        ({"adapters": "none.safetensors"}, "none.safetensors"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(given, message):
    cascade = show1_jax.load()
    with pytest.raises(InputError, match=message):
        cascade.stream(**{"prompts": PROMPT, "progress": False} | given)


def test_an_own_first_frame_is_continued(door):
    cascade, (video, _) = door["cascade"], door["videos"]
    frame = np.full((40, 64, 3), 200, np.uint8)
    given = {"interpolation": video.stages["interpolation"], "first_frame": frame}
    (own,) = cascade(PROMPT, start={"super_resolution": given}, stop_after="super_resolution")
    assert list(own.stages) == ["super_resolution"]
    usual = video.stages["super_resolution"]
    assert np.abs(own.stages["super_resolution"] - usual).max() > 0.1


def test_what_a_call_is_given_is_told_before_anything_runs(door):
    cascade = door["cascade"]
    with pytest.raises(InputError, match="give a whole number"):
        cascade.stream(PROMPT, steps=0.5)
    assert cascade(iter([PROMPT]), stop_after="keyframes", steps=np.int64(2))
    with pytest.raises(AttributeError, match=r"immutable|FrozenConfigDict"):
        cascade.config.keyframes.steps = 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages": "keyframes"}, "give a list"),
        ({"batch_size": 2.5}, "batch_size is a whole number"),
        ({"dtype": 5}, "dtype a text"),
        ({"config": ConfigDict({"dtype": "auto"})}, "is missing"),
        ({"config": "tinny"}, "there is no file 'tinny'"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(given, message):
    with pytest.raises(InputError, match=message):
        show1_jax.load(**given)


def test_the_folder_of_runs_is_told_from_the_checkpoint_in_it(tmp_path):
    embedded = Path(show1_jax.load().checkpoints[0])
    (tmp_path / "checkpoint").symlink_to(embedded)
    with pytest.raises(InputError, match=r"is no checkpoint, but .*checkpoint is: give that one"):
        show1_jax.load(tmp_path)


def test_a_checkpoint_without_a_denoiser_replaces_none(tmp_path):
    embedded = Path(show1_jax.load().checkpoints[0])
    (tmp_path / "show-1-sr2").mkdir()
    for name in ("model_index.json", "vae"):
        (tmp_path / "show-1-sr2" / name).symlink_to(embedded / "show-1-sr2" / name)
    with pytest.raises(InputError, match=r"show-1-sr2 has no unet/, and would replace"):
        show1_jax.load([embedded, tmp_path])


def test_a_later_checkpoint_overrides_the_stages_of_an_earlier_one(tmp_path):
    embedded = Path(show1_jax.load().checkpoints[0])
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "show-1-sr1").symlink_to(embedded / "show-1-sr1")
    cascade = show1_jax.load([embedded, tmp_path / "own"])
    folders = cascade._engine.loaded.folders
    assert folders["super_resolution"].folder.parent == tmp_path / "own"
    assert folders["keyframes"].folder.parent == embedded
    assert cascade.stages == [stage.name for stage in show1_jax.STAGES]


def test_the_noise_of_a_clip_is_made_into_it_and_into_another_look(door, tmp_path):
    cascade, path = door["cascade"], tmp_path / "clip.mp4"
    write_mp4(path, render(Scene(SHAPE, 0.41, -0.09, 0.92), 30, 40, 64), 7.5)
    noise = cascade.invert(path, PROMPT, steps=10)
    assert noise.noise.shape == (1, 8, 10, 16, 3)
    (again,) = cascade(PROMPT, noise=noise, stop_after="keyframes")
    clip = read_clip(path, ClipSpec(8, 10, 16, 1.875))
    assert psnr(np.clip(again.stages["keyframes"], -1, 1), clip, peak=2) > 25
    (other,) = cascade(PROMPT.replace("red", "blue"), noise=noise, stop_after="keyframes")
    assert measure(other.frames).combination.color == "blue"


def test_weights_stay_in_memory_only_if_asked_to():
    read = []
    for keep in (True, False):
        cascade = show1_jax.load(stages=["keyframes"], keep_weights=keep)
        for _ in range(2):
            with jax.set_mesh(cascade._engine.mesh):
                read.append(cascade._engine.params("keyframes")["unet"])
    assert read[0] is read[1]
    assert read[2] is not read[3]


def test_importing_takes_no_time_and_loads_nothing_heavy():
    text = """
        import sys, show1_jax
        heavy = {"jax", "flax", "orbax", "numpy", "tensorflow", "transformers"} & set(sys.modules)
        assert not heavy, heavy
        assert set(show1_jax.__all__) <= set(dir(show1_jax))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(text)], check=True, timeout=60)


def test_every_public_name_is_there_and_documented():
    for name in show1_jax.__all__:
        found = getattr(show1_jax, name)
        assert name.startswith("__") or name == "STAGES" or found.__doc__, name
    assert callable(show1_jax.convert.load_diffusers)
    assert callable(show1_jax.convert.convert)
    with pytest.raises(AttributeError, match="has no attribute 'sound'"):
        _ = show1_jax.sound
