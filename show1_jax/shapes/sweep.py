"""Compares solvers, numbers of steps and guidance scales on keyframes of moving shapes.

    python -m show1_jax.shapes.sweep --count 50 --steps 5,10,20,50 --guidance 2
    python -m show1_jax.shapes.sweep --count 50 --solvers ddim --steps 10 --guidance 1,2,4

prints how often keyframes of validation combinations are right. `--plot` draws this over the number
of steps; it needs the extra "plot". Every setting samples the same prompts with the same seeds.
"""

if __name__ == "__main__":  # before the imports, for which --help does not wait
    import sys

    from show1_jax.cli.sweep import main

    sys.exit(main())

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.engine import Engine
from show1_jax.generate import prepare
from show1_jax.media import new_figure, write_figure
from show1_jax.paths import Checkpoint
from show1_jax.shapes.evaluation import aspect, judge, sampled
from show1_jax.shapes.prompts import draw
from show1_jax.shapes.tables import NAMES, accuracy, table
from show1_jax.stages import STAGES

Shares = Mapping[str, float]


def sweep(
    config: ConfigDict,
    checkpoint: Checkpoint | None,
    count: int,
    seed: int,
    *,
    solvers: Sequence[str],
    steps: Sequence[int],
    guidance: Sequence[float],
) -> dict[tuple[str, float, int], Shares]:
    """Samples and measures keyframes with every combination of settings.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      count: number of prompts.
      seed: decides the prompts and their noise.
      solvers: kinds of solver; see `SolverConfig`.
      steps: numbers of steps.
      guidance: guidance scales.

    Returns:
      The accuracies of each solver, guidance scale and number of steps; see `tables.accuracy`.

    Raises:
      InputError: if an argument is invalid.
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
    """Returns a solver's settings with another kind.

    DDIM and DDPM have a fixed stride. Only with "trailing" spacing does the first step start at
    full noise, and each next step where the step before ended. DPM-Solver++ always steps to the
    next timestep.
    """
    if kind == config.kind:
        return config
    return dataclasses.replace(config, kind=kind, spacing="trailing")


def plot(found: Mapping[tuple[str, float, int], Shares], path: Path) -> None:
    """Plots the share of clips that are right in all attributes over the number of steps.

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


def print_table(found: Mapping[tuple[str, float, int], Shares]) -> None:
    """Prints the accuracies, a row for each setting."""
    rows = {f"{kind} {scale:g} {steps}": shares for (kind, scale, steps), shares in found.items()}
    print(table({"solver guidance steps": {}, **rows}, [*NAMES, "all"]))
