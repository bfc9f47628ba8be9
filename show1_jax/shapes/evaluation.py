"""Evaluates a checkpoint on moving shapes: samples prompts, measures clips, makes tables."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.generate import prepare
from show1_jax.media import make_folder, to_uint8, write_png
from show1_jax.paths import Checkpoint
from show1_jax.progress import Progress
from show1_jax.shapes.arrays import Arrays
from show1_jax.shapes.judge import Measurement, measure
from show1_jax.shapes.outlines import flicker, roundness
from show1_jax.shapes.prompts import SPLITS, Item, draw, swap
from show1_jax.shapes.sheet import Row, contact_sheet, verdict
from show1_jax.shapes.tables import (
    NAMES,
    accuracy,
    attributes_of,
    chance,
    swap_accuracy,
    table,
)
from show1_jax.stages import STAGES, names
from show1_jax.stages.results import Results

MAX_ROWS = 12  # clips on the contact sheet
MIN_ROUNDNESS = 0.9  # of a circle


def evaluate(
    config: ConfigDict,
    checkpoint: Checkpoint | None,
    count: int,
    seed: int,
    *,
    out: Path | None,
    sheet: Path,
    stages: Sequence[str] | None,
    overrides: Mapping[str, Sequence[str]],
    empty: bool = False,
    swapped: bool = False,
    split: str = "validation",
) -> None:
    """Samples prompts of held-out combinations, and prints how often the clips follow them.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      count: number of prompts.
      seed: decides the prompts, and is the seed of the first one; see `prompts.draw`.
      out: folder for results, which may have results of earlier stages; None for a temporary one.
      sheet: PNG file to write, with the last stage's clips of some prompts.
      stages: the stages to run; None for all that the checkpoint has.
      overrides: for "steps" and "guidance", a value for all stages or `stage=value`s.
      empty: uses empty prompts, to measure guessing.
      swapped: samples each prompt again with one word swapped.
      split: name in `prompts.SPLITS` that the combinations are from.

    Raises:
      InputError: if an argument is invalid.
    """
    if empty and swapped:
        raise InputError("give --empty or --swap, not both")
    engine = Engine(config, prepare(config, checkpoint, overrides), stages)
    items = draw(count, seed, split)
    everything = items + (swap(items, seed) if swapped else [])
    prompts, seeds = ["" if empty else i.prompt for i in everything], [i.seed for i in everything]
    with sampled(engine, prompts, seeds, out) as results:
        measured = judge(results, len(everything), aspect(config))
        if not measured:
            raise InputError("no stage has a result of every prompt; name --stages or --out")
        print(report(measured, items, everything[count:], split))
        if not empty:
            print(outlines(results, items, aspect(config)))
        _write_sheet(sheet, results, measured, everything, count)


@contextlib.contextmanager
def sampled(
    engine: Engine, prompts: Sequence[str], seeds: Sequence[int], out: Path | None = None
) -> Iterator[Arrays]:
    """Runs stages, and yields their results, which are deleted at the end unless `out` is given.

    Args:
      engine: of the stages to run.
      prompts: one for each item.
      seeds: one for each item.
      out: folder for results, which may have results of earlier stages; None for a temporary one.

    Raises:
      InputError: if an input is missing, or a result cannot be made or written.
    """
    with tempfile.TemporaryDirectory(prefix="show1_jax_") as temporary:
        results = Arrays(out or Path(temporary))
        engine.check_inputs(range(len(prompts)), results)
        results.begin(prompts, seeds)
        with contextlib.closing(Progress()) as bars:
            engine.run(prompts, seeds, results, bars.update)
        yield results


def aspect(config: ConfigDict) -> float:
    """Width by height of the first stage, whose content later stages stretch to their own."""
    first = STAGES[0].from_config(config)
    return first.width / first.height


def judge(results: Results, items: int, aspect: float) -> dict[str, list[Measurement]]:
    """Measures the clips of each stage that has results of all items.

    Args:
      results: of the cascade.
      items: number of items.
      aspect: width / height at which the content is not stretched.

    Returns:
      Measurements of all items by stage.
    """
    measured = {}
    for stage in names():
        if all(results.has(item, stage) for item in range(items)):
            videos = (_video(results, item, stage) for item in range(items))
            measured[stage] = [
                measure(video, video.shape[2] / video.shape[1] / aspect) for video in videos
            ]
    return measured


def outlines(results: Results, items: Sequence[Item], aspect: float) -> str:
    """Makes a table of how round circles are, and how much outlines change, as text.

    Args:
      results: of the cascade.
      items: the prompts.
      aspect: see `judge`.
    """
    rows = {}
    for stage in names():
        if not all(results.has(place, stage) for place in range(len(items))):
            continue
        round_frames: list[bool] = []
        changes = []
        for place, item in enumerate(items):
            video = _video(results, place, stage)
            stretch = video.shape[2] / video.shape[1] / aspect
            if item.combination.shape == "circle":
                round_frames += (roundness(video, stretch) >= MIN_ROUNDNESS).tolist()
            changes.append(flicker(video, stretch))
        known = [change for change in changes if not np.isnan(change)]
        rows[stage] = {
            name: 100 * float(np.mean(values))
            for name, values in (("round", round_frames), ("change", known))
            if values
        }
    text = (
        f"Outlines, in %: frames of circles that fill {MIN_ROUNDNESS:.0%} of the smallest circle "
    )
    text += "around them,\nand change of coverage from frame to frame, over the shape's area.\n\n"
    return text + table(rows, ["round", "change"], "{:.1f}".format) + "\n"


def _video(results: Results, item: int, stage: str) -> np.ndarray:
    """Reads a result as `(frames, height, width, 3)` uint8; an image is one frame."""
    result = results.load(item, stage)
    frames = result if result.dtype == np.uint8 else to_uint8(result)
    return frames if frames.ndim == 4 else frames[None]


def report(
    measured: Mapping[str, Sequence[Measurement]],
    items: Sequence[Item],
    swapped: Sequence[Item],
    split: str = "validation",
) -> str:
    """Makes the tables, as text.

    Args:
      measured: measurements by stage: of the items, then of the swapped items.
      items: the prompts.
      swapped: the prompts with one word swapped; may be empty.
      split: that the items' combinations are from.
    """
    wanted = [item.combination for item in items]
    rows = {name: accuracy(name, seen[: len(items)], wanted) for name, seen in measured.items()}
    text = f"Right in % of {len(items)} clips of the split {split}: {SPLITS[split]}.\n"
    if split != "validation":
        text += "(Models trained on moving_shapes older than version 6.0.0 were shown them.)\n"
    text += "\n"
    text += table({**rows, "chance": chance()}, [*NAMES, "all"]) + "\n"
    if swapped:
        rows = {
            name: swap_accuracy(name, seen[: len(items)], seen[len(items) :], items, swapped)
            for name, seen in measured.items()
        }
        text += "\nOne word swapped, same seed: followed in % of its clips, and others that stayed:"
        text += "\n\n" + table(rows, [*NAMES, "all", "others"]) + "\n"
    return text


def _write_sheet(
    path: Path,
    results: Results,
    measured: Mapping[str, Sequence[Measurement]],
    items: Sequence[Item],
    count: int,
) -> None:
    """Draws the last stage's first clips, each followed by that of its swapped prompt."""
    stage = list(measured)[-1]
    pairs = [[index, index + count] for index in range(count)]
    shown = [index for pair in pairs for index in pair if index < len(items)][:MAX_ROWS]
    rows = []
    for index in shown:
        seen, asked = measured[stage][index].combination, items[index].combination
        unseen = [name for name in NAMES if name not in attributes_of(stage)]
        seen = seen._replace(**{name: getattr(asked, name) for name in unseen})
        rows.append(Row(_video(results, index, stage), items[index].prompt, *verdict(seen, asked)))
    make_folder(path.parent)
    write_png(path, contact_sheet(rows))
    print(f"{len(rows)} clips of {stage} in {path}")
