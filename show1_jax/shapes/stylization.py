"""Measures whether a clip keeps its path when its noise is sampled under another prompt.

    python -m show1_jax.shapes.stylization --pairs 50
    python -m show1_jax.shapes.stylization --motion circle --adapter circle.safetensors

Drawn clips are inverted under their own prompts (`sample.py --invert`). Their noise is then sampled
under prompts with another color, shape or background (`--from-noise`).

By default, clips have motions that no training clip has and no prompt can describe
(`shapes.motion`), so that the path must come from the noise, or from an adapter that learned it.
With `--motion straight`, prompts describe the path.

The program prints how well the new path correlates with the old one, how often the new look is
right, and how often all else is unchanged. The last row is for the same prompts with other noise.
"""

if __name__ == "__main__":  # before the imports, for which --help does not wait
    import sys

    from show1_jax.cli.stylization import main

    sys.exit(main())

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict
from tqdm import tqdm

from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.generate import prepare
from show1_jax.media import from_uint8, make_folder, to_uint8, write_png
from show1_jax.paths import Checkpoint
from show1_jax.shapes import motion
from show1_jax.shapes.drawing import render
from show1_jax.shapes.judge import Measurement, measure
from show1_jax.shapes.paths import likeness
from show1_jax.shapes.prompts import draw
from show1_jax.shapes.scenes import ATTRIBUTES, Combination, caption, difference, random_scene
from show1_jax.shapes.sheet import Row, contact_sheet
from show1_jax.shapes.tables import table
from show1_jax.shapes.taught_motions import TAUGHT_MOTIONS
from show1_jax.stages import STAGES, inversion
from show1_jax.stages.sampling import Call, Conditions, run

STAGE = STAGES[0].name
LOOKS = ("color", "shape", "background")
STEPS = 50
PAIRS = 50
TOGETHER = 10  # pairs
SHOWN = 6  # pairs on the contact sheet
CONTROL = "other noise"
STRAIGHT = "straight"
DEFAULT_MOTIONS = ("circle", "zigzag", "bounce", "spiral")


class Pair(NamedTuple):
    """A clip to draw, and the combination to change it to; `motion` as in `shapes.motion`."""

    motion: str
    old: Combination
    new: Combination
    template: int

    def prompt(self, combination: Combination) -> str:
        """Returns the caption of one of the combinations."""
        if self.motion == STRAIGHT:
            return caption(combination, self.template)
        return motion.words(combination, self.motion, self.template)

    def clip(self, rng: np.random.Generator, size: tuple[int, int, int]) -> np.ndarray:
        """Draws the clip: `(frames, height, width, 3)` uint8."""
        if self.motion == STRAIGHT:
            return render(random_scene(self.old, rng), *size)
        return render(motion.Taught(self.old, self.motion), *size)

    @property
    def look(self) -> str:
        """The attribute that differs."""
        return difference(self.old, self.new)[0]


def pairs(count: int, seed: int, motions: Sequence[str] = DEFAULT_MOTIONS) -> list[Pair]:
    """Draws combinations, and changes color, shape or background in turn, with motions in turn."""
    rng = np.random.default_rng((seed, 4))
    found = []
    for index, item in enumerate(draw(count, seed)):
        look, old = LOOKS[index % len(LOOKS)], item.combination
        old = old._replace(motion=STRAIGHT, speed="")  # unless another motion is taught
        others = [v for v in ATTRIBUTES[look] if v != getattr(old, look)]
        changed = old._replace(**{look: others[rng.integers(len(others))]})
        name = motions[index % len(motions)]
        found.append(Pair(name, old, changed, item.template))
    return found


def taught_pairs(name: str) -> list[Pair]:
    """Pairs the clip that taught a motion with all combinations that differ in one look."""
    return [
        Pair(name, motion.TAUGHT, motion.TAUGHT._replace(**{look: value}), 0)
        for look in LOOKS
        for value in ATTRIBUTES[look]
        if value != getattr(motion.TAUGHT, look)
    ]


def choose(count: int | None, seed: int, name: str | None, adapter: str) -> list[Pair]:
    """Returns the pairs that the flags ask for.

    Args:
      count: number of pairs; None for `PAIRS`, or with an adapter for all pairs of `taught_pairs`.
      seed: decides the pairs.
      name: of the motion; None for `DEFAULT_MOTIONS`.
      adapter: an adapter that learned the motion; may be empty.

    Raises:
      InputError: if there is an adapter, but no motion, or a number of pairs.
    """
    if not adapter:
        return pairs(count or PAIRS, seed, [name] if name else DEFAULT_MOTIONS)
    if name not in TAUGHT_MOTIONS:
        raise InputError(
            f"--adapter needs the --motion that it learned: {', '.join(TAUGHT_MOTIONS)}"
        )
    found = taught_pairs(name)
    if count is not None:
        raise InputError(
            f"--adapter uses the {len(found)} pairs that differ from the taught clip in one look; "
            "remove --pairs"
        )
    return found


def evaluate_stylization(
    config: ConfigDict, checkpoint: Checkpoint | None, both: Sequence[Pair], seed: int, sheet: Path
) -> dict[str, dict[str, float]]:
    """Changes the look of drawn clips, and prints how their paths and looks change.

    Args:
      config: as in `configs/show1.py`; this function modifies it.
      checkpoint: a converted checkpoint.
      both: the clips, and the combinations to change them to.
      seed: decides where straight paths start, and the other noise.
      sheet: PNG file to write, with some clips, each above its result.

    Returns:
      Rows for all pairs, for the pairs of each changed attribute, and for all pairs with other
      noise. Columns: "path", the median correlation; "followed", the share with at least 0.9;
      "look" and "rest", the shares with the new look, and with all else unchanged.

    Raises:
      InputError: if an argument is invalid.
    """
    engine = Engine(config, prepare(config, checkpoint, {}), [STAGE], jax.devices()[:1])
    rng, count = np.random.default_rng((seed, 5)), len(both)
    stage = engine.stages[STAGE]
    size = (stage.frames, stage.height, stage.width)
    clips = [pair.clip(rng, size) for pair in both]
    made: list[np.ndarray] = []
    control: list[np.ndarray] = []
    for start in tqdm(range(0, count, TOGETHER), desc="pairs", unit="batch"):
        own = slice(start, start + TOGETHER)
        for results, batch in zip(
            (made, control), _restyle(engine, clips[own], both[own], seed + start), strict=True
        ):
            results += batch
    before = [measure(clip) for clip in clips]
    everything, others = (
        [_judged(*each) for each in zip(both, before, map(measure, results), strict=True)]
        for results in (made, control)
    )
    rows = {"all": _summary(everything)}
    for look in dict.fromkeys(pair.look for pair in both):
        rows[look] = _summary(
            [one for one, pair in zip(everything, both, strict=True) if pair.look == look]
        )
    rows[CONTROL] = _summary(others)
    print(f"{count} clips given another look: path correlation (median, and of how many it is")
    print("0.9 or more), how many have the new look, and all else as before, in %\n")
    print(table(rows, ["path", "followed", "look", "rest"]))
    make_folder(sheet.parent)
    shown = []
    for pair, clip, result in list(zip(both, clips, made, strict=True))[:SHOWN]:
        shown += [
            Row(clip, pair.prompt(pair.old), True, "drawn"),
            Row(result, pair.prompt(pair.new), True, "restyled"),
        ]
    write_png(sheet, contact_sheet(shown))
    return rows


def _restyle(
    engine: Engine, clips: Sequence[np.ndarray], both: Sequence[Pair], seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The clips under the new prompts, from their noise under the old and from other; uint8."""
    stage = engine.stages[STAGE]
    sampler = inversion.inverter(engine.samplers[STAGE], STEPS)
    with jax.set_mesh(engine.mesh):
        olds, news = (
            [pair.prompt(own) for pair, own in zip(both, looks, strict=True)]
            for looks in ([p.old for p in both], [p.new for p in both])
        )
        texts = engine.encode([*olds, *news])
        old, new = (jnp.asarray(texts.pairs(stage, own)) for own in (olds, news))
        seeds = jnp.zeros(len(both), jnp.uint32)
        call = Call(sampler, engine.params(STAGE), old, seeds, jnp.float32(1))
        keys, video = call.keys(STAGE), jnp.asarray(from_uint8(np.stack(clips)))
        own = inversion.invert(call, video, Conditions(old), keys)
        other = jax.random.normal(jax.random.key(seed), own.shape)
        made, control = (
            np.clip(np.asarray(run(call, noise, Conditions(new), keys)), -1, 1)
            for noise in (own, other)
        )
    return list(to_uint8(made)), list(to_uint8(control))


def _judged(pair: Pair, before: Measurement, after: Measurement) -> dict[str, float]:
    """Scores one pair: similarity of the paths, and whether the look and the rest are right."""
    right = {
        name: getattr(after.combination, name) == getattr(pair.new, name) for name in motion.LOOKS
    }
    path = likeness(after.path, before.path).joint
    rest = all(own for name, own in right.items() if name != pair.look)
    return {"path": path, "followed": path >= 0.9, "look": right[pair.look], "rest": rest}


def _summary(judged: Sequence[dict[str, float]]) -> dict[str, float]:
    """Makes a row of the table: means of all scores, except the median of the paths."""
    means = {name: float(np.mean([one[name] for one in judged])) for name in judged[0]}
    return means | {"path": float(np.median([one["path"] for one in judged]))}
