"""What a program would take on TPUs that are not here: compiled for them on this CPU.

libtpu (extra `tpu-aot`) holds XLA's TPU compiler. It compiles for a named
topology without one, and refuses what does not fit. From the compiled program:
bytes per chip, FLOPs and bytes of memory traffic, and the collectives. The
time is the roofline's (Williams et al. 2009): that of whichever of arithmetic,
memory and network takes longest, all at their peaks.

The compiler counts loops once: a training step is counted as one part of its batch,
times the parts; the autoencoder as one chunk of frames, times the chunks (when sampling; in
the training of translation, where it is one part of the step, once). Attention kernels are
counted from their shapes.
"""

import dataclasses
import importlib.util
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from show1_jax.errors import LESS_MEMORY, LESS_MEMORY_SAMPLING, InputError
from show1_jax.parallel.mesh import batch_parts, make_mesh
from show1_jax.parallel.sharding import fsdp_hint


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of one chip: bytes of memory for programs, and bytes or FLOPs (bf16) a second at the peak."""

    memory: float
    flops: float
    bandwidth: float
    network: float


# cloud.google.com/tpu/docs, "System architecture"; the network's of all links of a chip. Of the
# memory, what the compiler says is available.
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip(95.73 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.24 * 2**30, 918e12, 1640e9, 448e9),
}
SIDES = {"v5e": 2, "v5p": 3, "v6e": 2}  # of a topology


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a stage.

    Attributes:
      stage: whose it is.
      name: what it does.
      lower: traces it, under the mesh of the topology.
      repeats: how much of its loop's work there is for what the compiler counts.
      beside: of the stage's other arrays in memory meanwhile, shapes with shardings.
      parameters: those that it is given, likewise.
      optimizer: its state, likewise; None when sampling.
    """

    stage: str
    name: str
    lower: Callable[[], jax.stages.Lowered]
    parameters: Any
    optimizer: Any = None
    repeats: float = 1
    beside: Any = None


def topology(name: str) -> tuple[Chip, Sequence[jax.Device]]:
    """The chips of a topology such as "v5e:16x16", "v5p:4x4x4" or "v5e:1".

    Raises:
      InputError: if there is no such topology, or libtpu is not installed.
    """
    kind, _, layout = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", layout):
        raise InputError(f"--aot {name}: give a topology such as v5e:4x4 of {', '.join(CHIPS)}")
    sides = [int(side) for side in layout.split("x")]
    sides += [1] * (SIDES[kind] - len(sides))
    # A host has 2x2 chips, or all if there are fewer.
    bounds = [min(2, side) for side in sides[:2]] + [1] * (3 - len(sides[:2]))
    options = {} if bounds == [2, 2, 1] else {"chips_per_host_bounds": bounds}
    try:
        from jax.experimental import topologies

        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{'x'.join(map(str, sides))}", **options
        )
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        lacking = importlib.util.find_spec("libtpu") is None
        hint = " (it takes libtpu: install the extra tpu-aot)" if lacking else ""
        raise InputError(f"--aot {name}: {line}{hint}") from error
    return CHIPS[kind], found.devices


def predict(
    programs: Callable[[int], Iterable[Program]],
    sizes: Mapping[str, int],
    name: str,
    as_json: bool,
) -> None:
    """Compiles programs for a topology and prints what they take, as a table or as JSON.

    Args:
      programs: makes them, given into how many parts the mesh splits a batch.
      sizes: of the mesh; see `make_mesh`.
      name: of the topology.
      as_json: prints a list of objects instead of a table.

    Raises:
      InputError: if the topology or a setting is wrong.
    """
    chip, devices = topology(name)
    mesh = make_mesh(sizes, devices)
    reports: list[dict[str, Any]] = []
    try:
        with jax.set_mesh(mesh):
            for program in programs(batch_parts(mesh)):
                if hint := fsdp_hint(program.parameters):
                    print(f"{program.stage}: {hint}", file=sys.stderr, flush=True)
                reports.append(compile_report(program, chip, name, len(devices)))
                if not as_json:
                    print(("" if reports[1:] else HEADER + "\n") + line(reports[-1]), flush=True)
    finally:
        # What took an hour to find is told although the next one failed, or was interrupted.
        if as_json and reports:
            print(json.dumps(by_stage(reports), indent=2))
    for report in reports:
        if not report["fits"]:
            excess = (report["peak_bytes_per_chip"] - report["hbm_bytes_per_chip"]) / 2**30
            print(
                f"{report['stage']} ({report['program']}) does not fit: {excess:.2f} GiB too much; "
                f"{LESS_MEMORY if report['program'] == 'step' else LESS_MEMORY_SAMPLING}",
                file=sys.stderr,
            )


def by_stage(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object for each stage: its first program, with the peak and the compilation of all."""
    stages: dict[str, dict[str, Any]] = {}
    for report in reports:
        first = stages.setdefault(report["stage"], dict(report))
        if first["program"] != report["program"]:
            peak = max(first["peak_bytes_per_chip"], report["peak_bytes_per_chip"])
            seconds = first["compile_seconds"] + report["compile_seconds"]
            first |= {"peak_bytes_per_chip": peak, "compile_seconds": seconds}
            first["fits"] = first["fits"] and report["fits"]
    return list(stages.values())


HEADER = (
    f"{'stage':17}{'program':9}{'GiB per chip: parameters':>25}{'optimizer':>11}{'activations':>13}"
    f"{'peak':>7}{'of':>5}{'TFLOP':>9}{'GB':>8}{'GB sent':>9}{'seconds':>9}{'MFU':>6}"
    f"  {'bound by':11}{'compiled in':>11}"
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


def compile_report(program: Program, chip: Chip, name: str, chips: int) -> dict[str, Any]:
    """Compiles a program and says what it takes.

    FLOPs are those that are executed: of what remat computes again, too.

    Args:
      program: which; called under the mesh of the topology.
      chip: one of its chips.
      name: of the topology.
      chips: how many there are.
    """
    begin = time.perf_counter()
    parameters, optimizer, beside = (
        bytes_per_chip(tree) for tree in (program.parameters, program.optimizer, program.beside)
    )
    known = {
        "stage": program.stage,
        "program": program.name,
        "topology": name,
        "chips": chips,
        "parameter_bytes_per_chip": parameters,
        "optimizer_bytes_per_chip": optimizer,
        "hbm_bytes_per_chip": chip.memory,
    }
    compiled, own = None, parameters + optimizer
    # Not compiled for an hour where these alone are too many.
    if own + beside <= chip.memory:
        try:
            compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            found = refused(str(error), own)
            if found is None:
                raise
            own = found
    if compiled is None:
        none = ("flops", "bytes_accessed", "bound_by", "roofline_seconds", "predicted_mfu")
        known |= {"fits": False, "collectives": {}, **dict.fromkeys(none)}
    else:
        memory: Any = compiled.memory_analysis()
        own = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes
        )
        cost = compiled.cost_analysis() or {}
        text = compiled.as_text() or ""
        collected = collectives(text, chips)
        for entry in collected.values():
            entry |= {key: round(program.repeats * value) for key, value in entry.items()}
        counted = cost.get("flops", 0.0) + kernel_flops(text)
        flops = program.repeats * counted
        traffic = program.repeats * cost.get("bytes accessed", 0.0)
        times = {
            "arithmetic": flops / chip.flops,
            "memory": traffic / chip.bandwidth,
            "network": sum(each["bytes"] for each in collected.values()) / chip.network,
        }
        seconds = max(times.values())
        known |= {
            "fits": own + beside <= chip.memory,
            "flops": flops,
            "bytes_accessed": traffic,
            "collectives": collected,
            "bound_by": max(times, key=times.__getitem__),
            "roofline_seconds": seconds,
            "predicted_mfu": times["arithmetic"] / seconds,
        }
    return known | {
        "activation_bytes_per_chip": own - parameters - optimizer,
        "peak_bytes_per_chip": own + beside,
        "compile_seconds": time.perf_counter() - begin,
    }


def bytes_per_chip(tree: Any) -> int:
    """What arrays or shapes with shardings take on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


# Of the bytes of the result, how many each of `n` chips sends, around a ring.
_SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def collectives(hlo: str, chips: int) -> dict[str, dict[str, int]]:
    """How many collectives of each kind a compiled program has, and the bytes a chip sends.

    One whose start and end are apart, or that is done piece by piece in the
    computations that hide it, counts once.

    Args:
      hlo: the program's text.
      chips: how many run it.
    """
    found: dict[str, dict[str, int]] = {}
    pattern = re.compile(rf"= (\(?[^=]*?\)?) ({'|'.join(_SENT)})(-start)?\((.*)")
    seen: set[tuple[str, ...]] = set()
    computation = ""
    for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
        if line[:1] in "%E":  # ENTRY
            computation = line
        match = pattern.search(line)
        if match is None:
            continue
        shapes, kind, start, rest = match.groups()
        if chain := _CHAIN.search(rest):
            if chain.groups() in seen:
                continue
            seen.add(chain.groups())
        sizes = [
            _ITEM_BYTES.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side)
            for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        ]
        # What the start of some gives holds their operands too, before the results.
        if start and kind == "all-gather":
            sizes = sizes[len(sizes) // 2 :]
        elif start and kind == "collective-permute":
            sizes = sizes[1:2]
        together = _together(rest, chips)
        sent = sum(sizes) * _SENT[kind](together)
        # TPUs' compiler fuses an all-reduce with what takes a share of it, and then sends that.
        if computation.startswith("%all-reduce-scatter"):
            kind, sent = "reduce-scatter", sum(sizes) * (together - 1) / together
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += round(sent)
    return found


# What all pieces of one collective have in common.
_CHAIN = re.compile(r"channel_id=(\d+).*chain_id=\"(\d+)\"")


def _together(attributes: str, chips: int) -> int:
    """How many chips a collective is between, by its groups.

    They are written {{0,1},{2,3}}, [2,2]<=[4], or mesh['a'=2,'b'=2] {'a'}.
    """
    if match := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{('\w+'(?:, ?'\w+')*)\}", attributes):
        sides = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        return math.prod(int(sides.get(axis.strip(), 1)) for axis in match[2].split(","))
    match = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=)", attributes)
    if match is None:
        return chips
    return len(match[1].split(",")) if match[1] else int(match[2])


# Matrix products over queries and keys in each kernel of JAX's splash attention.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_KERNEL = re.compile(
    rf"%splash_mha_({'|'.join(_PRODUCTS)})\S* = .*? custom-call\(.*?"
    r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_REALS = r"(?:bf16|f32)\[(\d+(?:,\d+){2,})\]"


def kernel_flops(hlo: str) -> float:
    """FLOPs of attention kernels, which the compiler takes for none; padding included.

    Their first two operands of real numbers are the queries and the keys,
    `(batch, …, heads, length, width)`: mapped over clips and frames, they have five sides.
    """
    total = 0.0
    for kind, operands in _KERNEL.findall(hlo):
        shapes = re.findall(_REALS, operands)[:2]
        queries, keys = ([int(side) for side in shape.split(",")] for shape in shapes)
        total += 2 * _PRODUCTS[kind] * math.prod(queries) * keys[-2]
    return total


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
