"""Whether a clip that is given another look keeps its path: by the noise that makes it.

    python -m show1_jax.shapes.stylization --pairs 50
    python -m show1_jax.shapes.stylization --motion circle --adapter circle.safetensors

Drawn clips are inverted under their own prompts (`sample.py --invert`), and
their noise sampled under prompts with another color, shape or background
(`--from-noise`). They move as no training clip does and no prompt can ask for
(`evaluation.motion`), so that the path can come from the noise alone, or from
an adapter that was taught it; `--motion straight` is for clips whose prompts
tell their path. A last row shows what the same prompts make of other noise. Of
each it prints how the path of what is shown correlates with that of the clip,
and how often the look is the new one and all else what it was.
"""

if __name__ == "__main__":  # before the imports, for which --help does not wait
    import sys

    from show1_jax.cli.stylization import main

    sys.exit(main())

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.generate import prepare
from show1_jax.media import from_uint8, make_folder, to_uint8, write_png
from show1_jax.paths import Checkpoint
from show1_jax.shapes import motion
from show1_jax.shapes.judge import Measurement, measure
from show1_jax.shapes.moving_shapes import ATTRIBUTES, Combination, caption, random_scene, render
from show1_jax.shapes.paths import likeness
from show1_jax.shapes.prompts import difference, draw
from show1_jax.shapes.sheet import Row, contact_sheet
from show1_jax.shapes.tables import table
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


class Pair(NamedTuple):
    """A clip to be drawn, and what it is to be made into; `motion` as in `evaluation.motion`."""

    motion: str
    old: Combination
    new: Combination
    template: int

    def prompt(self, combination: Combination) -> str:
        """The words for one of them."""
        if self.motion == STRAIGHT:
            return caption(combination, self.template)
        return motion.words(combination, self.motion, self.template)

    def clip(self, rng: np.random.Generator, size: tuple[int, int, int]) -> np.ndarray:
        """What is drawn: `(frames, height, width, 3)` uint8."""
        if self.motion == STRAIGHT:
            return render(random_scene(self.old, rng), *size)
        return render(motion.Taught(self.old, self.motion), *size)

    @property
    def look(self) -> str:
        """What differs."""
        return difference(self.old, self.new)[0]


def pairs(count: int, seed: int, motions: Sequence[str] = tuple(motion.MOTIONS)) -> list[Pair]:
    """Combinations, and each with another color, shape or background, in turn; motions, too."""
    rng = np.random.default_rng((seed, 4))
    found = []
    for index, item in enumerate(draw(count, seed)):
        look = LOOKS[index % len(LOOKS)]
        others = [v for v in ATTRIBUTES[look] if v != getattr(item.combination, look)]
        changed = item.combination._replace(**{look: others[rng.integers(len(others))]})
        name = motions[index % len(motions)]
        found.append(Pair(name, item.combination, changed, item.template))
    return found


def taught_pairs(name: str) -> list[Pair]:
    """What adapters were taught a motion by, and all that differs from it in one look."""
    return [
        Pair(name, motion.TAUGHT, motion.TAUGHT._replace(**{look: value}), 0)
        for look in LOOKS
        for value in ATTRIBUTES[look]
        if value != getattr(motion.TAUGHT, look)
    ]


def choose(count: int | None, seed: int, name: str | None, adapter: str) -> list[Pair]:
    """The pairs that flags ask for.

    Args:
      count: how many; None for `PAIRS`, or for all that show what an adapter was taught.
      seed: decides them.
      name: of the motion; None for all but straight ones.
      adapter: what was taught the motion; may be empty.

    Raises:
      InputError: if an adapter's motion is not given, or the number of its pairs is.
    """
    if not adapter:
        return pairs(count or PAIRS, seed, [name] if name else list(motion.MOTIONS))
    if name not in motion.MOTIONS:
        raise InputError(f"which --motion was it taught? Give {', '.join(motion.MOTIONS)}")
    found = taught_pairs(name)
    if count is not None:
        raise InputError(
            f"--adapter tries the {len(found)} pairs that differ from the taught clip in one "
            "look: leave out --pairs"
        )
    return found


def evaluate_stylization(
    config: ConfigDict, checkpoint: Checkpoint | None, both: Sequence[Pair], seed: int, sheet: Path
) -> dict[str, dict[str, float]]:
    """Gives drawn clips another look, and prints what became of their paths and looks.

    Args:
      config: as in `configs/show1.py`; changed.
      checkpoint: a converted checkpoint.
      both: the clips, and what to make of them.
      seed: decides where straight paths begin, and the other noise.
      sheet: the PNG to write: some clips, each above what was made of it.

    Returns:
      For all, by the attribute that was changed, and for all from other noise, the median "path"
      correlation, the share with 0.9 and more, and those that have the new "look" and the "rest"
      as before.

    Raises:
      InputError: if anything given is wrong.
    """
    engine = Engine(config, prepare(config, checkpoint, {}), [STAGE], jax.devices()[:1])
    rng, count = np.random.default_rng((seed, 5)), len(both)
    size = (config.keyframes.frames, config.keyframes.height, config.keyframes.width)
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
    """Of one pair: how alike the paths are, and whether the look and the rest are right."""
    right = {
        name: getattr(after.combination, name) == getattr(pair.new, name) for name in motion.LOOKS
    }
    path = likeness(after.path, before.path).joint
    rest = all(own for name, own in right.items() if name != pair.look)
    return {"path": path, "followed": path >= 0.9, "look": right[pair.look], "rest": rest}


def _summary(judged: Sequence[dict[str, float]]) -> dict[str, float]:
    """A row of the table: the mean of everything, but the median of the paths."""
    means = {name: float(np.mean([one[name] for one in judged])) for name in judged[0]}
    return means | {"path": float(np.median([one["path"] for one in judged]))}
