"""Whether a clip that is given another look keeps its path: by the noise that makes it.

    python -m show1_jax.evaluation.stylization --pairs 50

Drawn clips of held-out combinations are inverted under their own prompts (`sample.py
--invert`), and their noise sampled under prompts with another color, shape or
background (`--from-noise`). Of each of these it prints how the path of what is
shown correlates with that of the clip, and how often the look is the new one
and all else what it was.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from show1_jax import commands
from show1_jax.data.moving_shapes import ATTRIBUTES, Combination, random_scene, render
from show1_jax.evaluation.cascade import aspect
from show1_jax.evaluation.paths import likeness
from show1_jax.evaluation.prompts import Item, draw
from show1_jax.evaluation.shapes import Measurement, measure
from show1_jax.evaluation.sheet import Row, contact_sheet
from show1_jax.evaluation.tables import table
from show1_jax.generate import prepare
from show1_jax.media import from_uint8, make_folder, to_uint8, write_png
from show1_jax.stages import inversion
from show1_jax.stages.cascade import Cascade
from show1_jax.stages.sampling import Conditions, clip_keys, run

STAGE = "keyframes"
LOOKS = ("color", "shape", "background")
STEPS = 50
TOGETHER = 10  # pairs
SHOWN = 6  # pairs on the contact sheet


def pairs(count: int, seed: int) -> list[tuple[Item, Item]]:
    """Held-out items, and each with another color, shape or background, in turn."""
    rng = np.random.default_rng((seed, 4))
    found = []
    for index, item in enumerate(draw(count, seed)):
        look = LOOKS[index % len(LOOKS)]
        others = [v for v in ATTRIBUTES[look] if v != getattr(item.combination, look)]
        changed = item.combination._replace(**{look: others[rng.integers(len(others))]})
        found.append((item, item._replace(combination=changed)))
    return found


def evaluate_stylization(
    config: ConfigDict, checkpoint: str | None, count: int, seed: int, sheet: Path
) -> dict[str, dict[str, float]]:
    """Gives drawn clips another look, and prints what became of their paths and looks.

    Args:
      config: as in `configs/show1.py`; changed.
      checkpoint: a converted checkpoint.
      count: how many pairs of a clip and a prompt.
      seed: decides them.
      sheet: the PNG to write: some clips, each above what was made of it.

    Returns:
      For all and by the attribute that was changed, the median "path" correlation, the share with
      0.9 and more, and those that have the new "look" and the "rest" as before.

    Raises:
      InputError: if anything given is wrong.
    """
    folder = prepare(config, checkpoint, {"steps": [f"{STAGE}={STEPS}"]})
    cascade = Cascade(config, folder, [STAGE], jax.devices()[:1])
    both, rng = pairs(count, seed), np.random.default_rng((seed, 5))
    size = (config.keyframes.frames, config.keyframes.height, config.keyframes.width)
    clips = [render(random_scene(item.combination, rng), *size) for item, _ in both]
    made: list[np.ndarray] = []
    for start in tqdm(range(0, count, TOGETHER), desc="pairs", unit="batch"):
        own = slice(start, start + TOGETHER)
        made += _restyle(cascade, clips[own], both[own])
    stretch = size[2] / size[1] / aspect(config)
    before, after = ([measure(clip, stretch) for clip in all_] for all_ in (clips, made))
    changed = [LOOKS[index % len(LOOKS)] for index in range(count)]
    wanted = [new.combination for _, new in both]
    everything = [_judged(*each) for each in zip(before, after, wanted, changed, strict=True)]
    rows = {"all": _summary(everything)}
    for look in dict.fromkeys(changed):
        rows[look] = _summary(
            [one for one, own in zip(everything, changed, strict=True) if own == look]
        )
    print(f"{count} clips given another look: path correlation (median, and of how many it is")
    print("0.9 or more), how many have the new look, and all else as before, in %\n")
    print(table(rows, ["path", "followed", "look", "rest"]))
    make_folder(sheet.parent)
    shown = []
    for (old, new), clip, result in list(zip(both, clips, made, strict=True))[:SHOWN]:
        shown += [Row(clip, old.prompt, True, "drawn"), Row(result, new.prompt, True, "restyled")]
    write_png(sheet, contact_sheet(shown))
    return rows


def _restyle(
    cascade: Cascade, clips: Sequence[np.ndarray], both: Sequence[tuple[Item, Item]]
) -> list[np.ndarray]:
    """The clips under the second prompts, from their noise under the first; uint8."""
    denoiser = inversion.inverter(cascade.denoisers[STAGE], STEPS)
    with jax.set_mesh(cascade.mesh):
        embeddings = cascade.encode([item.prompt for pair in both for item in pair]).t5
        assert embeddings is not None
        old, new = (
            jnp.asarray(np.stack([np.stack([embeddings[None], embeddings[p]]) for p in prompts], 1))
            for prompts in zip(*([item.prompt for item in pair] for pair in both), strict=True)
        )
        params = cascade.params(STAGE)["unet"]
        keys = clip_keys(jnp.zeros(len(both), jnp.uint32), STAGE)
        video = jnp.asarray(from_uint8(np.stack(clips)))
        guidance = jnp.float32(1)
        noise = inversion.invert(denoiser, params, video, Conditions(old, guidance, keys))
        made = run(denoiser, params, noise, Conditions(new, guidance, keys))
    return [to_uint8(clip) for clip in np.clip(np.asarray(made), -1, 1)]


def _judged(
    before: Measurement, after: Measurement, wanted: Combination, look: str
) -> dict[str, float]:
    """Of one pair: how alike the paths are, and whether the look and the rest are right."""
    right = {
        name: getattr(after.combination, name) == getattr(wanted, name)
        for name in Combination._fields
    }
    path = likeness(after.path, before.path).joint
    rest = all(own for name, own in right.items() if name != look)
    return {"path": path, "followed": path >= 0.9, "look": right[look], "rest": rest}


def _summary(judged: Sequence[dict[str, float]]) -> dict[str, float]:
    """A row of the table: the mean of everything, but the median of the paths."""
    means = {name: float(np.mean([one[name] for one in judged])) for name in judged[0]}
    return means | {"path": float(np.median([one["path"] for one in judged]))}


if __name__ == "__main__":
    CONFIG = commands.define_config("How to sample (default: configs/tiny.py).")
    CHECKPOINT = commands.define_checkpoint()
    PAIRS = flags.DEFINE_integer("pairs", 50, "How many clips.", 1)
    SEED = flags.DEFINE_integer("seed", 0, "Decides the clips and prompts.", 0, 2**31)
    SHEET = commands.define_path("sheet", "The contact sheet (default: outputs/stylization.png).")

    def main() -> None:
        """Makes one call of the flags."""
        evaluate_stylization(
            CONFIG.value,
            CHECKPOINT.value or CONFIG.value.get("checkpoint"),
            PAIRS.value,
            SEED.value,
            SHEET.value or Path("outputs") / "stylization.png",
        )

    commands.run(main, Path(__file__).parents[2] / "configs" / "tiny.py")
