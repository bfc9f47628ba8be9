"""Predicts what a program takes of chips that are not here, by compiling for them on this CPU.

The compiled program gives the bytes of memory per chip, FLOPs, bytes of memory traffic and
collectives. The TPU compiler counts FLOPs and traffic itself; for GPUs they are counted from the
program's text. The time is the roofline's (Williams et al. 2009): that of whichever of arithmetic,
memory and network takes longest, all at their peaks. The TPU compiler refuses what does not fit;
for GPUs the peak is compared with the card's memory.

Loops are counted once: a training step is counted as one part of its batch, times the parts; a step
of sampling as the rows that the network is given at a time, times the number of pieces; the
autoencoder as one chunk of frames, times the chunks (when sampling; in the training of translation,
where it is one part of the step, once); T5 as one layer, times the layers. Attention kernels are
counted from their shapes.
"""

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from show1_jax.aot.chips import Chip, topology
from show1_jax.aot.counting import Module, collectives, kernel_flops
from show1_jax.errors import LESS_MEMORY, LESS_MEMORY_SAMPLING
from show1_jax.parallel.mesh import description, slice_count
from show1_jax.parallel.sharding import fsdp_hint


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a stage.

    Attributes:
      stage: whose it is.
      name: what it does.
      lower: traces it, under the mesh of the topology.
      repeats: how much of its loop's work there is for what the compiler counts.
      beside: of the stage's other arrays in memory meanwhile, shapes with shardings.
      runs: how often a batch of videos runs it.
      parameters: those that it is given, likewise.
      optimizer: its state, likewise; None when sampling.
      quick: whether TPUs' compiler makes little effort. Then memory traffic and the bytes of
        activations are upper bounds, and the MFU a lower one.
    """

    stage: str
    name: str
    lower: Callable[[], jax.stages.Lowered]
    parameters: Any
    optimizer: Any = None
    repeats: float = 1
    beside: Any = None
    runs: int = 1
    quick: bool = False


def predict(
    programs: Callable[[Sequence[jax.Device]], Iterable[tuple[Mesh, Program]]],
    name: str,
    as_json: bool,
) -> list[dict[str, Any]]:
    """Compiles programs for a topology and prints what they take, as a table or as JSON.

    Args:
      programs: makes them, given the devices, each with its mesh.
      name: of the topology.
      as_json: prints a list of objects instead of a table.

    Returns:
      What was printed, by program.

    Raises:
      InputError: if the topology or a setting is wrong.
    """
    chip, devices = topology(name)
    reports: list[dict[str, Any]] = []
    try:
        for mesh, program in programs(devices):
            with jax.set_mesh(mesh):
                if hint := fsdp_hint(program.parameters):
                    print(f"{program.stage}: {hint}", file=sys.stderr, flush=True)
                reports.append(compile_report(program, chip, name, mesh))
            if not as_json:
                print(("" if reports[1:] else HEADER + "\n") + line(reports[-1]), flush=True)
                if mesh.size > 1:
                    print(mesh_line(reports[-1]), flush=True)
    finally:
        # What took an hour to find is told although the next one failed, or was interrupted.
        if as_json and reports:
            print(json.dumps(by_stage(reports), indent=2))
    if any(report["quick"] for report in reports) and not as_json:
        print(QUICK)
    for report in reports:
        if not report["fits"]:
            excess = (report["peak_bytes_per_chip"] - report["hbm_bytes_per_chip"]) / 2**30
            print(
                f"{report['stage']} ({report['program']}) does not fit: {excess:.2f} GiB too much; "
                f"{LESS_MEMORY if report['program'] == 'step' else LESS_MEMORY_SAMPLING}",
                file=sys.stderr,
            )
    return reports


def total(reports: Sequence[Mapping[str, Any]]) -> str:
    """Says how long sampling's programs take for a batch of videos, and what the largest takes."""
    peak = max(report["peak_bytes_per_chip"] for report in reports) / 2**30
    taken = [report["all_runs_seconds"] for report in reports]
    seconds = "?" if None in taken else f"{sum(taken):.1f}"
    return f"all of these, for a batch: at least {seconds} s, and {peak:.2f} GiB per chip"


def by_stage(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object for each stage: its first program, with the peak and the compilation of all."""
    stages: dict[str, dict[str, Any]] = {}
    for report in reports:
        first = stages.setdefault(report["stage"], dict(report))
        if first["program"] != report["program"]:
            peak = max(first["peak_bytes_per_chip"], report["peak_bytes_per_chip"])
            seconds = first["compile_seconds"] + report["compile_seconds"]
            first |= {"peak_bytes_per_chip": peak, "compile_seconds": seconds}
            taken = (first["all_runs_seconds"], report["all_runs_seconds"])
            first["all_runs_seconds"] = None if None in taken else sum(taken)
            first["fits"] = first["fits"] and report["fits"]
    return list(stages.values())


HEADER = (
    f"{'stage':17}{'program':9}{'GiB per chip: parameters':>25}{'optimizer':>11}{'activations':>13}"
    f"{'peak':>7}{'of':>5}{'TFLOP':>9}{'GB':>8}{'GB sent':>9}{'seconds':>9}{'MFU':>6}"
    f"  {'bound by':11}{'compiled in':>11}"
)


QUICK = (
    "training is compiled with little effort, in minutes: nothing is kept in the vector memory, so "
    "GB and seconds are at most these, and the MFU is at least this"
)


def line(report: Mapping[str, Any]) -> str:
    """A program's line under `HEADER`."""
    parameters, optimizer, activations, peak, memory = (
        report[f"{name}_bytes_per_chip"] / 2**30
        for name in ("parameter", "optimizer", "activation", "peak", "hbm")
    )
    taken = (
        f"{report['stage']:17}{report['program']:9}{parameters:25.2f}{optimizer:11.2f}"
        f"{activations:13.2f}{peak:7.2f}{memory:5.0f}"
    )
    if report["flops"] is None:
        return f"{taken}  does not fit"
    sent = sum(each["bytes"] for each in report["collectives"].values()) / 1e9
    return taken + (
        f"{report['flops'] / 1e12:9.2f}"
        f"{report['bytes_accessed'] / 1e9:8.1f}{sent:9.2f}{report['roofline_seconds']:9.4f}"
        f"{report['predicted_mfu']:6.0%}  {report['bound_by']:11}{report['compile_seconds']:9.0f} s"
    )


def mesh_line(report: Mapping[str, Any]) -> str:
    """Says how the chips are laid out, and what each of them sends to other slices."""
    sides = description(report["mesh"])
    if not (sent := report["between_slices"]) or report["slices"] == 1:
        return f"  on {sides}"
    overlapped = sent["overlapped_bytes"] / max(sent["bytes"], 1)
    return (
        f"  on {sides}; between {report['slices']} slices {sent['bytes'] / 1e9:.4f} GB sent in "
        f"{sent['count']} transfers, {overlapped:.0%} of it during products"
    )


def compile_report(program: Program, chip: Chip, name: str, mesh: Mesh) -> dict[str, Any]:
    """Compiles a program and says what it takes.

    FLOPs are those that are executed: of what remat computes again, too.

    Args:
      program: which; called under the mesh.
      chip: one of its chips.
      name: of the topology.
      mesh: of its chips.
    """
    begin = time.perf_counter()
    parameters, optimizer, beside = (
        bytes_per_chip(tree) for tree in (program.parameters, program.optimizer, program.beside)
    )
    quick = program.quick and chip.quick_options is not None
    known = {
        "stage": program.stage,
        "program": program.name,
        "runs": program.runs,
        "topology": name,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "slices": slice_count(mesh),
        "quick": quick,
        "parameter_bytes_per_chip": parameters,
        "optimizer_bytes_per_chip": optimizer,
        "hbm_bytes_per_chip": chip.memory,
    }
    compiled, own = None, parameters + optimizer
    # Not compiled for an hour where these alone are too many.
    if own + beside <= chip.memory:
        try:
            compiled = program.lower().compile(chip.quick_options if quick else chip.options)
        except jax.errors.JaxRuntimeError as error:
            found = refused(str(error), own)
            if found is None:
                raise
            own = found
    if compiled is None:
        none = (
            "flops", "bytes_accessed", "bound_by", "roofline_seconds",
            "predicted_mfu", "all_runs_seconds",
        )  # fmt: skip
        known |= {"fits": False, "collectives": {}, "between_slices": {}, **dict.fromkeys(none)}
    else:
        own = held_bytes(compiled)
        taken = costs(compiled, program.repeats, chip, mesh)
        seconds = program.runs * taken["roofline_seconds"]
        known |= taken | {"all_runs_seconds": seconds, "fits": own + beside <= chip.memory}
    return known | {
        "activation_bytes_per_chip": own - parameters - optimizer,
        "peak_bytes_per_chip": own + beside,
        "compile_seconds": time.perf_counter() - begin,
    }


def held_bytes(compiled: jax.stages.Compiled) -> int:
    """What a chip holds while a compiled program runs: arguments, results, buffers and code."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def costs(compiled: jax.stages.Compiled, repeats: float, chip: Chip, mesh: Mesh) -> dict[str, Any]:
    """What `repeats` runs of a compiled program compute, move and send, and how long at least."""
    text = compiled.as_text() or ""
    collected, module = collectives(text, mesh.size), Module(text)
    traffic = repeats * module.traffic()
    between = module.between_slices(slice_count(mesh))
    for entry in (*collected.values(), between):
        entry |= {key: round(repeats * value) for key, value in entry.items()}
    if cost := compiled.cost_analysis():
        flops = repeats * (cost.get("flops", 0.0) + kernel_flops(text))
    else:  # GPUs' compiler does not say
        flops = repeats * module.flops()
    times = {
        "arithmetic": flops / chip.flops,
        "memory": traffic / chip.bandwidth,
        "network": sum(each["bytes"] for each in collected.values()) / chip.network,
        "slices": between["bytes"] / chip.between_slices,
    }
    seconds = max(times.values())
    return {
        "flops": flops,
        "bytes_accessed": traffic,
        "collectives": collected,
        "between_slices": between,
        "bound_by": max(times, key=times.__getitem__),
        "roofline_seconds": seconds,
        "predicted_mfu": times["arithmetic"] / seconds,
    }


def bytes_per_chip(tree: Any) -> int:
    """What arrays or shapes with shardings take on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


_TEMPORARIES = r"HLO temporaries \(([\d.]+)([KMG])\)"


def refused(message: str, arguments: int) -> int | None:
    """Bytes of a program that does not fit, as the compiler says; None if that is not it.

    It counts all that the program holds, or what it computes alone: then its
    parameters and optimizer (`arguments`) are added, its batch is not.
    """
    for pattern, beside in ((r"Used ([\d.]+)([KMG]) of", 0), (_TEMPORARIES, arguments)):
        if match := re.search(pattern, message):
            return int(float(match[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[match[2]]) + beside
    return None
