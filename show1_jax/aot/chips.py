"""Chips that programs are compiled for without having them: TPUs and NVIDIA GPUs.

XLA's TPU compiler is in libtpu (extra `tpu-aot`), its GPU compiler in JAX's CUDA plugin (extra
`gpu-aot`). Both compile for a described topology on any CPU.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from show1_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, in bytes and seconds.

    Attributes:
      memory: bytes for programs.
      flops: of dense bf16 matrices with fp32 sums, a second, at the peak.
      bandwidth: bytes of memory read or written a second, at the peak.
      network: bytes a second that a chip can send to the others.
      between_slices: of these, to chips in other slices.
      options: of the compiler.
      quick_options: of the compiler, in place of those, for what would take it an hour.
    """

    memory: float
    flops: float
    bandwidth: float
    network: float
    between_slices: float = math.inf
    options: dict[str, Any] | None = None
    quick_options: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What all GPUs of a compute capability share (CUDA C++ Programming Guide, table 27)."""

    capability: tuple[int, int]
    threads: int  # of a multiprocessor
    shared_memory: int  # bytes of a multiprocessor
    fp32_units: int  # of a multiprocessor


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU, from its data sheet.

    Attributes:
      name: as the driver gives it.
      architecture: see there.
      multiprocessors: how many it has.
      clock: of them, in GHz, boosted.
      cache: bytes of L2.
      chip: its memory and peaks; `network` is that of its links within a host.
    """

    name: str
    architecture: Architecture
    multiprocessors: int
    clock: float
    cache: int
    chip: Chip


# cloud.google.com/tpu/docs, "System architecture"; the network's of all links of a chip, and its
# share of its host's network cards. Of the memory, what the compiler says is available.
TPUS = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, 3.125e9),
    "v5p": Chip(95.73 * GIB, 459e12, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(31.24 * GIB, 918e12, 1640e9, 448e9, 12.5e9),
}
# The least effort to make kernels fast: a training step compiles in a fifth of the time or less.
# Fusions and FLOPs are the same, but no array is in the vector memory, and the code is smaller.
QUICK_OPTIONS: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
SIDES = {"v5e": 2, "v5p": 3, "v6e": 2}  # of a topology

AMPERE = Architecture((8, 0), 2048, 164 * 2**10, 64)
AMPERE_86 = Architecture((8, 6), 1536, 100 * 2**10, 128)
ADA = Architecture((8, 9), 1536, 100 * 2**10, 128)
HOPPER = Architecture((9, 0), 2048, 228 * 2**10, 128)
BLACKWELL = Architecture((10, 0), 2048, 228 * 2**10, 128)

PCIE = 32e9  # bytes a second each way of 16 lanes of generation 4
MB = 2**20
# NVIDIA's data sheets: FLOPs without sparsity. Of the memory, what the driver leaves. A link's
# network is what it sends, which is half of what the data sheets add up.
GPUS = {
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", HOPPER, 132, 1.98, 50 * MB,
        Chip(79.1 * GIB, 989e12, 3352e9, 450e9),
    ),
    "h200": Gpu(
        "NVIDIA H200", HOPPER, 132, 1.98, 50 * MB,
        Chip(139.8 * GIB, 989e12, 4800e9, 450e9),
    ),
    "a100-80g": Gpu(
        "NVIDIA A100-SXM4-80GB", AMPERE, 108, 1.41, 40 * MB,
        Chip(79.2 * GIB, 312e12, 2039e9, 300e9),
    ),
    "a100-40g": Gpu(
        "NVIDIA A100-SXM4-40GB", AMPERE, 108, 1.41, 40 * MB,
        Chip(39.4 * GIB, 312e12, 1555e9, 300e9),
    ),
    "l40s": Gpu("NVIDIA L40S", ADA, 142, 2.52, 96 * MB, Chip(44.4 * GIB, 362e12, 864e9, PCIE)),
    "l4": Gpu("NVIDIA L4", ADA, 58, 2.04, 48 * MB, Chip(22.0 * GIB, 121e12, 300e9, PCIE)),
    "rtx4090": Gpu(
        "NVIDIA GeForce RTX 4090", ADA, 128, 2.52, 72 * MB,
        Chip(23.5 * GIB, 165e12, 1008e9, PCIE),
    ),
    "rtx3090": Gpu(
        "NVIDIA GeForce RTX 3090", AMPERE_86, 82, 1.70, 6 * MB,
        Chip(23.5 * GIB, 71e12, 936e9, PCIE),
    ),
    "b200": Gpu(
        "NVIDIA B200", BLACKWELL, 148, 1.97, 126 * MB,
        Chip(178.4 * GIB, 2250e12, 7672e9, 900e9),
    ),
}  # fmt: skip
# Without a GPU, XLA cannot try Triton's kernels for matrix products, and takes one that does not
# always compile: JAX 0.10.2 refuses the keyframes with it. cuBLAS's do.
GPU_OPTIONS: dict[str, Any] = {"xla_gpu_enable_triton_gemm": False}
BETWEEN_HOSTS = 50e9  # bytes a second that a GPU sends to other hosts: 400 Gbit/s InfiniBand


def topology(name: str) -> tuple[Chip, Sequence[jax.Device]]:
    """Describes chips that need not be there.

    Args:
      name: such as "v5e:16x16", "v5p:4x4x4" or "v5e:1" for TPUs, "v5e:16x16*2" for two slices;
        "h100:8" for the GPUs of one host, and "h100:2x8" for two hosts of eight.

    Returns:
      One of the chips, and all devices. The network of GPUs of several hosts is that between
      hosts.

    Raises:
      InputError: if there is no such topology, or its compiler is not installed.
    """
    kind, _, layout = name.partition(":")
    known = [*TPUS, *GPUS]
    slices = r"(\*[1-9]\d*)?" if kind in TPUS else ""
    if kind not in known or not re.fullmatch(rf"\d+(x\d+)*{slices}", layout):
        raise InputError(
            f"--aot {name}: give a topology such as v5e:4x4 or h100:8 of {', '.join(known)}"
        )
    layout, _, count = layout.partition("*")
    sides = [int(side) for side in layout.split("x")]
    return _gpus(name, kind, sides) if kind in GPUS else _tpus(name, kind, sides, int(count or 1))


def _tpus(name: str, kind: str, sides: list[int], slices: int) -> tuple[Chip, Sequence[jax.Device]]:
    sides += [1] * (SIDES[kind] - len(sides))
    # A host has 2x2 chips, or all if there are fewer.
    bounds = [min(2, side) for side in sides[:2]] + [1] * (3 - len(sides[:2]))
    options: dict[str, Any] = {} if bounds == [2, 2, 1] else {"chips_per_host_bounds": bounds}
    if slices > 1:
        options["num_slices"] = slices
    with _told(name, "libtpu", "libtpu", "tpu-aot"):
        from jax.experimental import topologies

        wanted = f"{kind}:{'x'.join(map(str, sides))}"
        found = topologies.get_topology_desc(platform="tpu", topology_name=wanted, **options)
    return dataclasses.replace(TPUS[kind], quick_options=QUICK_OPTIONS), found.devices


def _gpus(name: str, kind: str, sides: list[int]) -> tuple[Chip, Sequence[jax.Device]]:
    if len(sides) > 2 or min(sides) < 1:
        raise InputError(f"--aot {name}: give the GPUs of a host, or hosts x GPUs such as 2x8")
    hosts, count = [1, *sides][-2:]
    gpu = GPUS[kind]
    # The plugin looks for a driver's version, which is not needed to compile.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    with _told(name, "jax_cuda12_plugin", "JAX's CUDA plugin", "gpu-aot"):
        from jax.experimental import topologies

        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name=kind,
            topology=f"1x{hosts}x{count}",  # one slice of so many hosts
            target_config=target_config(gpu),
        )
    network = BETWEEN_HOSTS if hosts > 1 else gpu.chip.network
    return dataclasses.replace(gpu.chip, network=network, options=GPU_OPTIONS), found.devices


def target_config(gpu: Gpu) -> str:
    """Returns a GPU as XLA describes it: a `GpuTargetConfigProto` in text format."""
    own, chip = gpu.architecture, gpu.chip
    major, minor = own.capability
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_core": own.shared_memory,
        "shared_memory_per_block_optin": own.shared_memory - 2**10,
        "threads_per_core_limit": own.threads,
        "core_count": gpu.multiprocessors,
        "fpus_per_core": own.fp32_units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": int(chip.memory),
    }
    listed = " ".join(f"{key}: {value}" for key, value in fields.items())
    return (
        f"gpu_device_info {{ {listed} "
        f"cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } '
        # `parallel.mesh.current_platform` reads the capability here.
        f'device_description_str: "{gpu.name} (compute capability {major}.{minor})"'
    )


@contextlib.contextmanager
def _told(name: str, module: str, compiler: str, extra: str) -> Iterator[None]:
    """Turns what a missing or unwilling compiler raises into an InputError."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        lacking = importlib.util.find_spec(module) is None
        hint = f" (it takes {compiler}: install the extra {extra})" if lacking else ""
        raise InputError(f"--aot {name}: {line}{hint}") from error
