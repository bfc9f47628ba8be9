"""What each stage adds to a simple filter, when it is given what is true.

The clips that a stage starts from are drawn, of held-out combinations, so that
the truth of what it should make is known:

- interpolation against blending its two keyframes linearly: distance of the
  shape's centroid from its true place, in pixels, in the frames that show one, and PSNR
- first_frame and super_resolution against bicubic upscaling: PSNR
- translation against bicubic upscaling, which it starts from: PSNR, sharpness of
  edges, and the share of clips that are right in every attribute
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from show1_jax.bars import Bars
from show1_jax.cascade import STAGES, Cascade, clip_frames
from show1_jax.errors import InputError
from show1_jax.evaluation.metrics import edge_sharpness, psnr
from show1_jax.generate import prepare
from show1_jax.media import from_uint8, resize_uint8, to_uint8
from show1_jax.shapes.evaluation import aspect
from show1_jax.shapes.judge import measure
from show1_jax.shapes.moving_shapes import Combination, Scene, random_scene, render
from show1_jax.shapes.paths import centroid_error, centroids
from show1_jax.shapes.prompts import draw
from show1_jax.shapes.tables import table

# Stages that run together: the second starts from what the first makes.
GROUPS = (("interpolation",), ("first_frame", "super_resolution"), ("translation",))


class Truth:
    """Drawn clips in place of the results of stages that are not run; see `cascade.Results`."""

    def __init__(self, config: ConfigDict, scenes: Sequence[Scene], run: Sequence[str]):
        """Results of the stages in `run` are kept, those of all others drawn."""
        self._scenes, self._run = scenes, run
        small = (config.keyframes.height, config.keyframes.width)
        large = (config.super_resolution.height, config.super_resolution.width)
        self._sizes = {"keyframes": small, "interpolation": small}
        self._sizes |= {"first_frame": large, "super_resolution": large}
        self._largest = (config.translation.height, config.translation.width)
        self._keyframes = config.keyframes.frames
        self._frames = clip_frames(config)
        self._made: dict[tuple[int, str], np.ndarray] = {}

    def true(self, item: int, stage: str) -> np.ndarray:
        """What a perfect stage would have made: uint8, an image as a clip of one frame."""
        frames = self._keyframes if stage == "keyframes" else self._frames
        if stage == "translation":  # which stretches what it is given
            height, width = (4 * side for side in self._sizes["super_resolution"])
            return resize_uint8(render(self._scenes[item], frames, height, width), *self._largest)
        video = render(self._scenes[item], frames, *self._sizes[stage])
        return video[:1] if stage == "first_frame" else video

    def made(self, item: int, stage: str) -> np.ndarray:
        """What the stage made, likewise."""
        frames = to_uint8(self._made[item, stage])
        return frames if frames.ndim == 4 else frames[None]

    def filtered(self, item: int, stage: str) -> np.ndarray:
        """What a simple filter makes of the stage's input, likewise."""
        made = self.made(item, stage)
        if stage == "interpolation":
            return _blended(self.true(item, "keyframes"), len(made))
        source = "super_resolution" if stage == "translation" else "interpolation"
        return resize_uint8(self.true(item, source)[: len(made)], *made.shape[1:3])

    def has(self, item: int, stage: str) -> bool:
        """Whether there is a result."""
        return (item, stage) in self._made or stage not in self._run

    def done(self, item: int, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether there is a result already."""
        del settings
        return self.has(item, stage)

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Raises it: means over some of the clips would be other figures."""
        raise InputError(f"{stage} of clip {item}: {error}")

    def load(self, item: int, stage: str) -> np.ndarray:
        """What the stage made, if it is run, or what is true."""
        if (item, stage) in self._made:
            return self._made[item, stage]
        pixels = from_uint8(self.true(item, stage))
        return pixels[0] if stage == "first_frame" else pixels

    def save(self, item: int, stage: str, result: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Keeps a result."""
        del settings
        self._made[item, stage] = np.asarray(result)


def evaluate_alone(
    config: ConfigDict,
    checkpoint: str | None,
    count: int,
    seed: int,
    stages: Sequence[str] | None,
    overrides: Mapping[str, Sequence[str]],
    split: str = "validation",
) -> None:
    """Runs stages on true inputs, and prints how they compare with simple filters.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      count: how many clips.
      seed: decides them.
      stages: the stages to run; None for all that the checkpoint has. Keyframes
        start from nothing, and are left out.
      overrides: for "steps" and "guidance", a value for all stages or `stage=value`s.
      split: whose combinations the clips have, of `prompts.SPLITS`.

    Raises:
      InputError: if anything given is wrong, or nothing is left to run.
    """
    folder = prepare(config, checkpoint, overrides)
    chosen = Cascade(config, folder, stages).stages
    groups = [[stage for stage in group if stage in chosen] for group in GROUPS]
    if not any(groups):
        raise InputError(f"name stages that start from others: {', '.join(STAGES[1:])}")
    items = draw(count, seed, split)
    prompts, seeds = [item.prompt for item in items], [item.seed for item in items]
    scenes = [
        random_scene(item.combination, np.random.default_rng((seed, 3, index)))
        for index, item in enumerate(items)
    ]
    for group in filter(None, groups):
        truth = Truth(config, scenes, group)
        with contextlib.closing(Bars()) as bars:
            Cascade(config, folder, group).run(prompts, seeds, truth, bars.update)
        for stage in group:
            print("\n" + compare(config, stage, truth, [item.combination for item in items]))


def compare(
    config: ConfigDict, stage: str, truth: Truth, combinations: Sequence[Combination]
) -> str:
    """The table of one stage and its filter: means over all clips."""
    rows = {}
    for name, clip in (
        (stage, truth.made),
        ("blending" if stage == "interpolation" else "bicubic", truth.filtered),
    ):
        scores = [
            _score(config, stage, clip(item, stage), truth, item, combination)
            for item, combination in enumerate(combinations)
        ]
        rows[name] = {
            column: float(np.nanmean([score[column] for score in scores])) for column in scores[0]
        }
    return table(rows, list(rows[stage]), "{:.2f}".format)


def _score(
    config: ConfigDict,
    stage: str,
    video: np.ndarray,
    truth: Truth,
    item: int,
    combination: Combination,
) -> dict[str, float]:
    """How good one clip is."""
    true = truth.true(item, stage)
    scores = {"PSNR (dB)": psnr(video, true)}
    if stage == "translation":
        stretch = video.shape[2] / video.shape[1] / aspect(config)
        right = measure(video, stretch).combination == combination
        scores |= {"edge sharpness": edge_sharpness(video), "all right (%)": 100.0 * right}
    if stage == "interpolation":
        path, true_path = (centroids(each, combination) for each in (video, true))
        scores["centroid error (pixels)"] = centroid_error(path, true_path)
        scores["with a shape (%)"] = 100.0 * float(np.isfinite(path).all(-1).mean())
    return scores


def _blended(keyframes: np.ndarray, frames: int) -> np.ndarray:
    """Keyframes blended linearly to `frames` frames."""
    places = np.linspace(0, len(keyframes) - 1, frames)
    before = np.minimum(places.astype(int), len(keyframes) - 2)
    share = (places - before)[:, None, None, None]
    return ((1 - share) * keyframes[before] + share * keyframes[before + 1] + 0.5).astype(np.uint8)
