"""Which solver, how many steps, how much guidance: keyframes of each, measured.

    python -m show1_jax.shapes.sweep --prompts 50 --steps 5,10,20,50 --guidance 2
    python -m show1_jax.shapes.sweep --prompts 50 --solvers ddim --steps 10 --guidance 1,2,4

prints how often keyframes of the validation combinations show what was asked
for, and draws it over the number of steps (extra "plot"). Every setting samples
the same prompts from the same seeds.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from show1_jax import commands
from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.generate import prepare
from show1_jax.media import check_figure, new_figure, write_figure
from show1_jax.shapes.evaluation import aspect, judge, sampled
from show1_jax.shapes.prompts import draw
from show1_jax.shapes.tables import NAMES, accuracy, table
from show1_jax.stages import STAGES

CONFIG = commands.define_config(
    "What to sample (default: configs/tiny.py); --config.KEY=VALUE changes it."
)
CHECKPOINT = commands.define_checkpoint()
PROMPTS = flags.DEFINE_integer("prompts", 50, "How many prompts.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Decides the prompts and their noise.", 0, 2**32 - 1)
SOLVERS = flags.DEFINE_list("solvers", ["dpm_solver", "ddim", "ddpm"], "The solvers to try.")
STEPS = flags.DEFINE_list("steps", ["5", "10", "20", "50"], "The numbers of steps to try.")
GUIDANCE = flags.DEFINE_list("guidance", ["2"], "The guidance scales to try.")
PLOT = commands.define_path("plot", "The picture to draw, such as sweep.png.")

Shares = Mapping[str, float]


def sweep(
    config: ConfigDict,
    checkpoint: str | None,
    count: int,
    seed: int,
    solvers: Sequence[str],
    steps: Sequence[int],
    guidance: Sequence[float],
) -> dict[tuple[str, float, int], Shares]:
    """Samples keyframes with every combination of settings, and measures them.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      count: how many prompts.
      seed: decides the prompts and their noise.
      solvers: kinds of solver; see `SolverConfig`.
      steps: numbers of steps.
      guidance: guidance scales.

    Returns:
      The accuracies of each solver, guidance scale and number of steps; see `tables.accuracy`.

    Raises:
      InputError: if anything given is wrong.
    """
    folder, stage = prepare(config, checkpoint, {}), STAGES[0].name
    items = draw(count, seed)
    prompts, seeds = [item.prompt for item in items], [item.seed for item in items]
    found: dict[tuple[str, float, int], Shares] = {}
    for kind, scale, number in itertools.product(solvers, guidance, steps):
        config[stage].update(steps=number, guidance=scale)
        engine = Engine(config, folder, [stage])
        sampler = engine.samplers[stage]
        solver = make_solver(_of_kind(sampler.solver.config, kind), number)
        engine.samplers[stage] = dataclasses.replace(sampler, solver=solver)
        with sampled(engine, prompts, seeds) as results:
            measured = judge(results, count, aspect(config))[stage]
        found[kind, scale, number] = accuracy(stage, measured, [i.combination for i in items])
    return found


def _of_kind(config: SolverConfig, kind: str) -> SolverConfig:
    """The same solver, but of another kind.

    DDIM and DDPM step by a fixed stride from each timestep: only counted from
    the last one does their first step start where the noise does, and each next
    one where the one before ended. DPM-Solver++ goes to the next timestep.
    """
    if kind == config.kind:
        return config
    return dataclasses.replace(config, kind=kind, spacing="trailing")


def plot(found: Mapping[tuple[str, float, int], Shares], path: Path) -> None:
    """Draws the share of clips that are right in everything over the number of steps.

    Raises:
      InputError: if matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for kind, scale in dict.fromkeys((kind, scale) for kind, scale, _ in found):
        points = [(key[2], 100 * found[key]["all"]) for key in found if key[:2] == (kind, scale)]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{kind}, guidance {scale:g}")
    axes.set(xlabel="steps", ylabel="all attributes right (%)", xscale="log", ylim=(0, 101))
    numbers = sorted({steps for _, _, steps in found})
    axes.set_xticks(numbers, labels=[str(number) for number in numbers])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(path, figure)


def main() -> None:
    """Makes one call of the flags."""

    def parse(name: str, kind: type, texts: Sequence[str]) -> list:
        try:
            return [kind(text) for text in texts]
        except ValueError:
            raise InputError(f"--{name} {','.join(texts)}: give numbers") from None

    steps = parse("steps", int, STEPS.value)
    guidance = parse("guidance", float, GUIDANCE.value)
    if PLOT.value:
        check_figure(PLOT.value)
    found = sweep(
        CONFIG.value,
        CHECKPOINT.value or CONFIG.value.get("checkpoint"),
        PROMPTS.value,
        SEED.value,
        SOLVERS.value,
        steps,
        guidance,
    )
    rows = {f"{kind} {scale:g} {steps}": shares for (kind, scale, steps), shares in found.items()}
    print(table({"solver guidance steps": {}, **rows}, [*NAMES, "all"]))
    if PLOT.value:
        plot(found, PLOT.value)


if __name__ == "__main__":
    commands.run(main, Path(__file__).parents[2] / "configs" / "tiny.py")
