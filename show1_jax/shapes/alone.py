"""Compares each stage with a simple filter, when both get true inputs.

Inputs are drawn clips of held-out combinations, so that the true results are known:

- interpolation is compared with linear blending of keyframes: PSNR, and the distance of the
  shape's centroid from its true place, in pixels, over the frames that show one; the same over the
  frames between the two keyframes between which the shape turns
- first_frame and super_resolution are compared with bicubic upscaling: PSNR
- translation is compared with bicubic upscaling, which it starts from: PSNR, sharpness of edges,
  and the share of clips that are right in every attribute
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.evaluation.metrics import edge_sharpness, psnr
from show1_jax.generate import prepare
from show1_jax.media import from_uint8, resize_uint8, to_uint8
from show1_jax.paths import Checkpoint
from show1_jax.progress import Progress
from show1_jax.shapes.drawing import render
from show1_jax.shapes.judge import measure
from show1_jax.shapes.paths import centroid_error, centroids
from show1_jax.shapes.prompts import draw
from show1_jax.shapes.scenes import Scene, difference, random_scene, turns_at_edge
from show1_jax.shapes.tables import table
from show1_jax.stages import STAGES, Stage, build

SCALE = 4  # at which clips of another shape are drawn, before they are stretched


def groups(names: Sequence[str]) -> list[list[str]]:
    """Stages that run together, of those given: one that starts from others, and what it uses."""
    used = {name for stage in STAGES for name in stage.uses}
    starts = [stage for stage in STAGES if stage.needs and stage.name not in used]
    found = [[n for n in (*stage.uses, stage.name) if n in names] for stage in starts]
    return [group for group in found if group]


class Truth:
    """Drawn clips in place of the results of stages that are not run; see `results.Results`."""

    def __init__(self, stages: Mapping[str, Stage], scenes: Sequence[Scene], run: Sequence[str]):
        """Results of the stages in `run` are kept, those of all others drawn."""
        self._stages, self._scenes, self._run = stages, scenes, run
        self._made: dict[tuple[int, str], np.ndarray] = {}

    def true(self, item: int, name: str) -> np.ndarray:
        """What a perfect stage would have made: uint8, an image as a clip of one frame."""
        stage, first = self._stages[name], self._stages[STAGES[0].name]
        size = (stage.height, stage.width)
        if stage.width * first.height == stage.height * first.width:
            video = render(self._scenes[item], stage.clip.frames, *size)
        else:  # it stretches what it is given
            before = self._stages[stage.needs[0]]
            drawn = (SCALE * before.height, SCALE * before.width)
            video = resize_uint8(render(self._scenes[item], stage.frames, *drawn), *size)
        return video[: stage.frames]

    def made(self, item: int, name: str) -> np.ndarray:
        """What the stage made, likewise."""
        frames = to_uint8(self._made[item, name])
        return frames if frames.ndim == 4 else frames[None]

    def filtered(self, item: int, name: str) -> np.ndarray:
        """What a simple filter makes of the stage's input, likewise."""
        stage = self._stages[name]
        return stage.filtered({needed: self.true(item, needed) for needed in stage.needs})

    def has(self, item: int, stage: str) -> bool:
        """Returns whether there is a result."""
        return (item, stage) in self._made or stage not in self._run

    def done(self, item: int, stage: str, settings: Mapping[str, Any]) -> bool:
        """Returns whether there is a result already."""
        del settings
        return self.has(item, stage)

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Raises the error, because means over only some clips would be misleading."""
        raise InputError(f"{stage} of clip {item}: {error}")

    def load(self, item: int, stage: str) -> np.ndarray:
        """Returns the result of the stage if it runs, otherwise the true clip."""
        if (item, stage) in self._made:
            return self._made[item, stage]
        pixels = from_uint8(self.true(item, stage))
        return pixels[0] if self._stages[stage].image else pixels

    def save(self, item: int, stage: str, result: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Keeps a result."""
        del settings
        self._made[item, stage] = np.asarray(result)


def evaluate_alone(
    config: ConfigDict,
    checkpoint: Checkpoint | None,
    count: int,
    seed: int,
    *,
    stages: Sequence[str] | None,
    overrides: Mapping[str, Sequence[str]],
    split: str = "validation",
) -> None:
    """Runs stages on true inputs, and prints a comparison with simple filters.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      count: number of clips.
      seed: decides the clips.
      stages: the stages to run; None for all that the checkpoint has. Keyframes are left out,
        because they have no input.
      overrides: for "steps" and "guidance", a value for all stages or `stage=value`s.
      split: name in `prompts.SPLITS` that the clips' combinations are from.

    Raises:
      InputError: if an argument is invalid, or no stage is left to run.
    """
    folder = prepare(config, checkpoint, overrides)
    known, chosen = build(config), groups(list(Engine(config, folder, stages).stages))
    if not chosen:
        starting = [stage.name for stage in STAGES if stage.needs]
        raise InputError(f"name stages that start from others: {', '.join(starting)}")
    items = draw(count, seed, split)
    prompts, seeds = [item.prompt for item in items], [item.seed for item in items]
    scenes = [
        random_scene(item.combination, np.random.default_rng((seed, 3, index)))
        for index, item in enumerate(items)
    ]
    for group in chosen:
        truth = Truth(known, scenes, group)
        with contextlib.closing(Progress()) as bars:
            Engine(config, folder, group).run(prompts, seeds, truth, bars.update)
        for name in group:
            print("\n" + compare(known, name, truth, scenes))


def compare(stages: Mapping[str, Stage], name: str, truth: Truth, scenes: Sequence[Scene]) -> str:
    """Makes the table of one stage and its filter: means over all clips that have a value."""
    rows = {}
    for row, clip in ((name, truth.made), (stages[name].filter_name, truth.filtered)):
        scores = [
            _score(stages, name, clip(item, name), truth.true(item, name), scene)
            for item, scene in enumerate(scenes)
        ]
        rows[row] = {
            column: float(np.mean(known))
            for column in scores[0]
            if (known := [s[column] for s in scores if not np.isnan(s[column])])
        }
    return table(rows, list(rows[name]), "{:.2f}".format)


def _score(
    stages: Mapping[str, Stage],
    name: str,
    video: np.ndarray,
    true: np.ndarray,
    scene: Scene,
) -> dict[str, float]:
    """How good one clip is; NaN where it has no such value."""
    combination = scene.combination
    stage, first = stages[name], stages[STAGES[0].name]
    scores = {"PSNR (dB)": psnr(video, true)}
    if name == STAGES[-1].name:
        stretch = video.shape[2] / video.shape[1] / (first.width / first.height)
        right = not difference(measure(video, stretch).combination, combination)
        scores |= {"edge sharpness": edge_sharpness(video), "all right (%)": 100.0 * right}
    if stage.frames > stages[stage.needs[0]].frames:
        path, true_path = (centroids(each, scene) for each in (video, true))
        scores["centroid error (pixels)"] = centroid_error(path, true_path)
        between = _turning(scene, stage.frames, stages[stage.needs[0]].frames)
        scores["at turns (pixels)"] = centroid_error(path[between], true_path[between])
        scores["with a shape (%)"] = 100.0 * float(np.isfinite(path).all(-1).mean())
    return scores


def _turning(scene: Scene, frames: int, keyframes: int) -> slice:
    """The frames between the two keyframes between which a scene turns; none if it does not."""
    if not turns_at_edge(scene.combination.motion):
        return slice(0)
    step = (frames - 1) // (keyframes - 1)
    gap = min(int(scene.turn * (keyframes - 1)), keyframes - 2)
    return slice(gap * step + 1, (gap + 1) * step)
