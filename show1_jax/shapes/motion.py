"""Measures whether clips follow a motion that an adapter learned from one clip.

    python -m show1_jax.shapes.motion --make motions
    python train.py --config configs/customize.py --config.video=motions/circle.mp4 \\
        --config.prompt="$(cat motions/circle.txt)" --config.out=circle.safetensors
    python -m show1_jax.shapes.motion --motion circle --adapter circle.safetensors

The first command draws one clip of each motion; moving shapes have none of these motions. The last
command samples prompts of other shapes and colors (with `--backgrounds`, other backgrounds too),
with and without the adapter. It prints how well the paths correlate with the taught path, and how
often shape and color are right.
"""

if __name__ == "__main__":  # before the imports, for which --help does not wait
    import sys

    from show1_jax.cli.motion import main

    sys.exit(main())

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from show1_jax.adapters.files import Adapter
from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.files import size_of
from show1_jax.generate import prepare
from show1_jax.media import make_folder, to_uint8, write_bytes, write_mp4, write_png
from show1_jax.paths import Checkpoint
from show1_jax.shapes.drawing import render
from show1_jax.shapes.evaluation import aspect, judge, sampled
from show1_jax.shapes.paths import likeness
from show1_jax.shapes.scenes import COLORS, DURATION, TEMPLATES, Combination, caption, combinations
from show1_jax.shapes.sheet import Row, contact_sheet
from show1_jax.shapes.tables import IN_TIME, NAMES, accuracy, table
from show1_jax.shapes.taught_motions import TAUGHT_MOTIONS
from show1_jax.stages import STAGES

TAUGHT = Combination("small", "red", "circle", "right", "black")
CLIP = (29, 80, 128)  # frames, height and width
LOOKS = [name for name in NAMES if name not in IN_TIME]  # a taught motion must not change them
MAX_SHOWN = 12  # clips on the contact sheet


@dataclasses.dataclass(frozen=True)
class Taught:
    """A scene with one of `TAUGHT_MOTIONS`; see `drawing.render`."""

    combination: Combination
    motion: str

    @property
    def color(self) -> np.ndarray:
        """RGB of the shape, which is that of the palette."""
        return np.array(COLORS[self.combination.color], np.float32)

    def centroid(self, times: ArrayLike) -> np.ndarray:
        """Returns the centroid at times in seconds: `(..., 2)`, x and y in frame heights."""
        return TAUGHT_MOTIONS[self.motion][1](np.asarray(times) / DURATION)


def words(combination: Combination, motion: str, template: int = 0) -> str:
    """Returns the caption of a motion, which replaces that of the combination."""
    plain = combination._replace(direction=TAUGHT_MOTIONS[motion][0], motion="straight", speed="")
    return caption(plain, template)


def draw(count: int, seed: int, backgrounds: bool = False) -> list[Combination]:
    """Draws combinations whose shape and color (and background) differ from the taught clip's."""
    others = [
        each
        for each in combinations()
        if each.color != TAUGHT.color
        and each.shape != TAUGHT.shape
        and each.direction == TAUGHT.direction
        and (each.background != TAUGHT.background) == backgrounds
    ]
    order = np.random.default_rng((seed, 3)).permutation(len(others))
    return [others[order[i % len(others)]] for i in range(count)]


def make(folder: Path) -> None:
    """Writes MOTION.mp4 and its caption, MOTION.txt, for each motion; raises InputError."""
    frames, height, width = CLIP
    make_folder(folder)
    for motion in TAUGHT_MOTIONS:
        video = render(Taught(TAUGHT, motion), frames, height, width)
        write_mp4(folder / f"{motion}.mp4", video, (frames - 1) / DURATION)
        write_bytes(folder / f"{motion}.txt", words(TAUGHT, motion).encode())
        print(folder / f"{motion}.mp4")


def follow(
    config: ConfigDict,
    checkpoint: Checkpoint | None,
    motion: str,
    adapters: Sequence[str],
    *,
    count: int,
    seed: int,
    overrides: Mapping[str, Sequence[str]],
    sheet: Path,
    backgrounds: bool = False,
) -> dict[str, dict[str, float]]:
    """Samples keyframes with and without adapters, and prints how well they follow a motion.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      motion: a name in `TAUGHT_MOTIONS`.
      adapters: FILE or FILE=WEIGHT each; each adapter is a row of the table.
      count: number of prompts.
      seed: decides the prompts.
      overrides: for "steps" and "guidance".
      sheet: PNG file to write, with the last adapter's clips.
      backgrounds: whether prompts have other backgrounds than the taught clip.

    Returns:
      By row: medians of the paths' correlations ("path", and "axes"; see `paths.Likeness`), and
      the accuracy of each attribute.

    Raises:
      InputError: if an argument is invalid.
    """
    if motion not in TAUGHT_MOTIONS:
        raise InputError(f"there is no motion {motion!r}: take {', '.join(TAUGHT_MOTIONS)}")
    folder, stage = prepare(config, checkpoint, overrides), STAGES[0].name
    wanted = draw(count, seed, backgrounds)
    templates = np.random.default_rng((seed, 6)).integers(len(TEMPLATES), size=count)
    prompts = [words(one, motion, own) for one, own in zip(wanted, templates, strict=True)]
    seeds = [seed + i for i in range(count)]
    rows: dict[str, dict[str, float]] = {}
    loaded: list[tuple[Adapter, float]] = []
    engines: dict[str, Engine] = {}
    for adapter in ("", *adapters):  # all of them are read before anything is sampled
        own = copy.deepcopy(config)
        own[stage].adapters = (adapter,) if adapter else ()
        engines[adapter] = Engine(own, folder, [stage])
        loaded += engines[adapter].loaded.adapters[stage]
    for adapter, engine in engines.items():
        with sampled(engine, prompts, seeds) as results:
            measured = judge(results, count, aspect(config))[stage]
            videos = [to_uint8(results.load(i, stage)) for i in range(min(count, MAX_SHOWN))]
        taught = Taught(TAUGHT, motion).centroid(np.linspace(0, DURATION, len(videos[0])))
        paths = [likeness(each.path, taught) for each in measured]
        shares = accuracy(stage, measured, wanted)
        joint, axes = (float(median) for median in np.median(paths, axis=0))
        row = {"path": joint, "axes": axes} | {name: shares[name] for name in LOOKS}
        rows[adapter or "untuned"] = row
    print(f"{count} prompts of the motion {motion}: path correlation (median) and right, in %\n")
    print(table(rows, ["path", "axes", *LOOKS]))
    print()
    for (own, _), text in zip(loaded, adapters, strict=True):
        numbers = sum(part.size for change in own.changes.values() for part in change)
        size = size_of(Path(own.source)) / 2**20
        print(f"{text}: {numbers:,} numbers, {size:.2f} MiB")
    make_folder(sheet.parent)
    joints = [path.joint for path in paths]
    shown = zip(videos, prompts, joints, strict=False)
    write_png(
        sheet,
        contact_sheet([Row(v, p, c >= 0.9, f"path {c:.2f}") for v, p, c in shown]),
    )
    return rows
