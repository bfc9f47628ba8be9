"""The programs that `sample.py` and `train.py` run, each on made-up arrays."""

import contextlib
import copy
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from jax.sharding import Mesh
from ml_collections import ConfigDict

from show1_jax import stages
from show1_jax.aot.prediction import Program
from show1_jax.aot.programs import sampling_programs, training_program
from show1_jax.compilation import use_compilation_cache
from show1_jax.parallel.mesh import batch_parts, make_mesh
from show1_jax.training.metrics import peak_memory
from show1_jax.training.placement import part_mesh

TRAIN = "train."


def measure(
    config: ConfigDict, name: str, calls: int, batch: int = 1, profile: Path | None = None
) -> None:
    """Compiles a program, runs it, and prints what that took.

    Args:
      config: as in `configs/show1.py`.
      name: a stage, an encoder, "translation.encode", "translation.decode" or "train.PART".
      calls: how often it is run.
      batch: clips of a training step, for each part that the mesh splits it into.
      profile: where to write a trace of the calls.

    Raises:
      InputError: if a setting is wrong.
    """
    use_compilation_cache()
    mesh = _mesh(config, name, batch)
    with jax.set_mesh(mesh):
        program = _program(config, name, batch_parts(mesh), batch)
        lowered = program.lower()
        begin = time.perf_counter()
        compiled = lowered.compile()
        compiling = time.perf_counter() - begin
        (infos, _), formats = lowered.args_info, compiled.input_formats[0]
        arrays = jax.tree.map(_made_up, infos, formats)
        if program.name == "denoise":
            arrays = (*arrays[:-1], (jnp.int32(0), jnp.int32(1)))  # one step
        seconds = []
        with jax.profiler.trace(str(profile)) if profile else contextlib.nullcontext():
            for _ in range(calls):
                given = jax.tree.map(
                    lambda info, array: jnp.copy(array) if info.donated else array, infos, arrays
                )
                jax.block_until_ready(given)
                begin = time.perf_counter()
                jax.block_until_ready(compiled(*given))
                seconds.append(time.perf_counter() - begin)
    label = f"{name} of {batch} clips a device" if name.startswith(TRAIN) else name
    count = sum(leaf.size for leaf in jax.tree.leaves(program.parameters))
    print(
        f"{label}: {count:,} parameters, {min(seconds):.3f} s (median {np.median(seconds):.3f}, "
        f"most {max(seconds):.3f}, of {calls}), compiled in {compiling:.1f} s, "
        f"peak {peak_memory() / 2**30:.2f} GiB, {jax.devices()[0].device_kind}",
        flush=True,
    )


def _mesh(config: ConfigDict, name: str, batch: int) -> Mesh:
    if not name.startswith(TRAIN):
        return make_mesh(config.mesh)
    part, config = stages.part(name.removeprefix(TRAIN)), copy.deepcopy(config)
    config.train[part.name].update(batch_size=jax.device_count() * batch, accumulate=1)
    return part_mesh(config, part)


def _program(config: ConfigDict, name: str, parts: int, batch: int) -> Program:
    if name.startswith(TRAIN):
        part, config = name.removeprefix(TRAIN), copy.deepcopy(config)
        config.train[part].update(batch_size=parts * batch, accumulate=1)
        return training_program(config, part)
    stage, _, which = name.partition(".")
    programs = list(sampling_programs(config, stage, parts))
    return next(each for each in programs if not which or each.name == which)


def _made_up(info: Any, sharding: Any) -> jax.Array:
    """Random numbers of the size of trained parameters: zeros or overflows may be faster."""
    if jnp.issubdtype(info.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.split(jax.random.key(0), info.shape), sharding)
    rng = np.random.default_rng(0)
    if jnp.issubdtype(info.dtype, jnp.floating):
        made = 0.02 * rng.standard_normal(info.shape, np.float32)
    else:
        made = rng.integers(0, 2, info.shape)
    return jax.device_put(jnp.asarray(made, info.dtype), sharding)
