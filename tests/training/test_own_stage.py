"""A stage that the project does not have, defined here alone: trained, priced, sampled, written."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from show1_jax import stages
from show1_jax.aot.programs import sampling_programs, training_program
from show1_jax.generate import generate
from show1_jax.invert import invert_clip
from show1_jax.media import read_mp4, write_mp4
from show1_jax.parallel.mesh import make_mesh
from show1_jax.stages.sampling import START, Conditions, draw, run
from show1_jax.stages.stage import Stage
from show1_jax.stages.training import Example
from show1_jax.training import loop
from tests.training.small import PIXEL, small_config

PROMPT = "a small red circle moving left"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirrored(Stage):
    """Makes the keyframes once more, as they look in a mirror that is `flip`ped or not."""

    name = "mirrored"
    folder = "own-mirrored"
    pipeline = "MirrorPipeline"
    needs = ("keyframes",)
    conditioned = True
    depends = {"keyframes": ("height", "width", "fps")}  # noqa: RUF012

    flip: bool

    @classmethod
    def from_config(cls, config):
        keyframes = config.keyframes
        return cls(
            frames=keyframes.frames,
            height=keyframes.height,
            width=keyframes.width,
            flip=config[cls.name].flip,
            **cls.common(config),
        )

    def condition(self, video):
        return video[..., ::-1, :] if self.flip else video

    def sample(self, call, inputs):
        keys = call.keys(self.name)
        frames = self.condition(inputs["keyframes"])
        return run(call, draw(keys, START, self.shape), Conditions(call.text, frames), keys)

    def example(self, key, video, params):
        return Example(video, self.condition(video))

    def split(self, video, key, params):
        return Example(video[None], self.condition(video[None]))

    def earlier(self, video):
        return {"keyframes": self.condition(video)}


@pytest.fixture(scope="module", autouse=True)
def _sixth():
    with pytest.MonkeyPatch.context() as patch:
        first, *others = stages.STAGES
        patch.setattr(stages, "STAGES", (first, Mirrored, *others))
        yield


@pytest.fixture(scope="module")
def config(data_dir, checkpoint):
    config = small_config("keyframes", data_dir)
    config.checkpoint = str(checkpoint)
    own = config.keyframes.to_dict() | {"flip": True, "fps": 3.0}
    for name in ("frames", "height", "width", "adapters"):
        del own[name]
    with config.unlocked():
        config.mirrored = ConfigDict(own | {"unet": own["unet"] | PIXEL | {"in_channels": 6}})
        config.train.mirrored = ConfigDict(config.train.keyframes.to_dict())
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own")
    for part in ("keyframes", "mirrored"):
        config.stage = part
        loop.train(config, workdir)
    return workdir


def test_it_is_trained_and_exported(workdir):
    assert list(stages.parts())[2:5] == ["keyframes", "mirrored", "interpolation"]
    folder = workdir / "checkpoint" / "own-mirrored"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "MirrorPipeline"
    assert json.loads((folder / "unet" / "config.json").read_text())["in_channels"] == 6
    assert (folder / "scheduler" / "scheduler_config.json").is_file()
    lines = (workdir / "mirrored" / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite([json.loads(line).get("loss", 0) for line in lines]).all()
    assert list((workdir / "mirrored" / "samples").glob("*.png"))


def test_it_is_sampled_and_written(config, workdir, tmp_path):
    out, checkpoint = tmp_path / "out", workdir / "checkpoint"
    given = {
        "out": out,
        "stages": ["keyframes", "mirrored"],
        "overrides": {"steps": ["mirrored=3"]},
    }
    generate(config, checkpoint, PROMPT, **given)
    item = out / "000"
    assert read_mp4(item / "mirrored.mp4").shape == (3, 4, 6, 3)
    made = json.loads((item / "metadata.json").read_text())["stages"]["mirrored"]
    assert (made["steps"], made["flip"], made["fps"]) == (3, True, 3.0)
    # It depends on what it starts from: on other keyframes, it is made anew, and is other.
    first = np.load(item / "mirrored.npy")
    np.save(item / "keyframes.npy", np.load(item / "keyframes.npy")[..., ::-1, :])
    config.mirrored.flip = False
    generate(config, checkpoint, PROMPT, **given, overwrite=True)
    np.testing.assert_allclose(np.load(item / "mirrored.npy"), first, atol=1e-4)
    config.mirrored.flip = True


def test_it_is_inverted(config, workdir, tmp_path):
    clip = tmp_path / "clip.mp4"
    write_mp4(clip, np.full((8, 8, 16, 3), 100, np.uint8), 3.0)
    out = tmp_path / "noise"
    found = invert_clip(config, workdir / "checkpoint", clip, "", out, steps=["5"], name="mirrored")
    assert found > 10
    assert (out / "mirrored.noise.npz").is_file()


def test_its_cost_is_predicted(config):
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        (program,) = sampling_programs(config, "mirrored", 1)
        assert (program.stage, program.name) == ("mirrored", "denoise")
        assert "func.func public @main" in program.lower().as_text()
        assert training_program(config, "mirrored").lower().as_text()
