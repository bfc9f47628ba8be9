"""The folder of one run: its settings, and checkpoints of everything that it is.

WORKDIR/PART/config.json      the settings; a run goes on only with the same
WORKDIR/PART/checkpoints/N/   state and data position after step N, and their digests (Orbax)
WORKDIR/PART/lock             held by the process that trains here
"""

import contextlib
import dataclasses
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils.epath import Path
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from show1_jax.checkpoints.networks import read_json
from show1_jax.checkpoints.objects import tell_retries
from show1_jax.checkpoints.store import reason, restoring
from show1_jax.errors import InputError
from show1_jax.files import write_whole
from show1_jax.lock import locked
from show1_jax.parallel.hosts import first
from show1_jax.parallel.sharding import placed
from show1_jax.paths import has_generations
from show1_jax.stages import Part, Stage
from show1_jax.training.step import TrainState
from show1_jax.training.tasks import compute_dtype

# Settings that a run may go on with changed: how long it is, what it tells of
# itself, what helps when a loss is not finite or memory is short, and what changes no loss.
FREE = (
    "steps",
    "learning_rate",
    "clip_norm",
    "accumulate",
    "remat",
    "threads",
    "log_every",
    "save_every",
    "keep",
    "validate_every",
    "validation_batches",
    "validation_batch_size",
    "sample_every",
    "data_dir",
    "text",
)
# Of the stages' sections, what only sampling depends on.
SAMPLING = (
    "steps",
    "guidance",
    "noise_level",
    "strength",
    "negative_prompt",
    "dropout",
    "head_reading",
    "vae_frames",
    "adapters",
)


class _Manager(ocp.CheckpointManager):
    """Leaves the question of preemption to the loop.

    JAX answers it in all processes after the same number of calls; Orbax would ask with a number
    of its own, the step, and the answer would come at another than is asked for next, or never.
    """

    def reached_preemption(self, step: int) -> bool:
        """Whether to save beside what the loop asks for: no."""
        return False


class RunFolder:
    """Saves and restores a run."""

    def __init__(self, folder: Path, config: ConfigDict, part: Part, inputs: dict[str, str]):
        """Opens a run's folder, or begins it.

        Args:
          folder: of the run; made if it is not there.
          config: as in `configs/show1.py`.
          part: what is trained.
          inputs: what tells the dataset and the frozen networks from others.

        Raises:
          InputError: if the folder holds a run with other settings, another run trains in it, or
            it cannot be written.
        """
        self.folder = folder
        settings = _settings(config, part) | {"inputs": inputs}
        path = folder / "config.json"
        with contextlib.ExitStack() as stack, _writing(folder):
            if first():
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder, "--workdir"))
            self._manager = _Manager(
                (folder / "checkpoints").absolute(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=config.train[part.name].keep, cleanup_tmp_directories=True
                ),
                item_handlers=_handlers(has_generations(folder)),
            )
            # A run that was stopped before it saved anything begins anew, perhaps corrected.
            if self._manager.latest_step() is not None:
                _compare(folder, read_json(path), settings)
            if first():
                write_whole(path, (json.dumps(settings, indent=2) + "\n").encode())
            self._lock = stack.pop_all()

    def restore(self, state: TrainState) -> tuple[TrainState, Any] | None:
        """The newest checkpoint: state and data positions; None if there is none.

        Args:
          state: of `jax.ShapeDtypeStruct`s; it is restored to where it belongs on the mesh.

        Raises:
          InputError: if it cannot be restored.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        items = {"state": ocp.args.StandardRestore(placed(state)), "data": ocp.args.JsonRestore()}
        folder = self.folder / "checkpoints" / str(step)
        advice = "remove it to go on from the one before"
        if (folder / "digests").is_dir():  # checkpoints of earlier versions have none
            items["digests"] = _LaterRestore()
        with restoring(folder, advice):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            found = _checksums(_digests(restored.state), restored.data)
            if restored.get("digests", found) != found:
                raise ValueError("what it holds is not what was saved")
        return restored.state, restored.data

    def save(self, state: TrainState, data: list[Any]) -> None:
        """Begins to save a checkpoint; it is written while training goes on.

        Returns when the state is in host memory. If the one before is still being written, waits
        for that first.

        Args:
          state: after some step; may be changed as soon as this returns.
          data: the position of each process's data iterator, ready for JSON.

        Raises:
          InputError: if this one or the one before cannot be written.
        """
        digests = _digests(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            digests=_LaterSave(lambda: _checksums(digests, data)),
        )
        with _writing(self.folder, self._manager):
            self._manager.save(int(state.step), args=items)

    def wait(self) -> None:
        """Returns when the last checkpoint is written; raises as `save` does."""
        with _writing(self.folder, self._manager):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and frees what the manager holds, and the folder for other runs."""
        with self._lock, _writing(self.folder, self._manager):
            self._manager.close()


class _LaterHandler(ocp.JsonCheckpointHandler):
    """Saves what a function returns, which it calls in the thread that writes."""

    async def _save_fn(self, x: Callable[[], Any], directory: Path) -> None:
        await super()._save_fn(x(), directory)


@ocp.args.register_with_handler(_LaterHandler, for_save=True)
@dataclasses.dataclass
class _LaterSave(ocp.args.CheckpointArgs):
    item: Callable[[], Any]


@ocp.args.register_with_handler(_LaterHandler, for_restore=True)
@dataclasses.dataclass
class _LaterRestore(ocp.args.CheckpointArgs):
    pass


def _handlers(database: bool) -> dict[str, Any]:
    """What saves each item; `database` is whether all arrays are in one (OCDBT)."""
    return {
        "state": ocp.StandardCheckpointHandler(use_ocdbt=database),
        "data": ocp.JsonCheckpointHandler(),
        "digests": _LaterHandler(),
    }


@contextlib.contextmanager
def _writing(folder: Path, manager: ocp.CheckpointManager | None = None) -> Iterator[None]:
    """Turns what goes wrong with writing into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        last = manager.latest_step() if manager else None
        kept = f"; the run can go on from step {last}" if last else ""
        raise InputError(f"{folder} cannot be written: {reason(error)}{kept}") from error
    finally:
        tell_retries()


def _digests(state: TrainState) -> list[jax.Array]:
    """Checksums of a state's arrays, which devices may still be computing."""
    digests = []
    for leaf in jax.tree.leaves(state):
        digests.append(_digest(leaf))
        # One at a time: on CPUs, many small programs of several devices and processes may block
        # each other.
        if len(leaf.sharding.device_set) > 1 and jax.default_backend() == "cpu":
            digests[-1].block_until_ready()
    return digests


def _checksums(digests: list[jax.Array], data: list[Any]) -> dict[str, int]:
    """What tells a checkpoint from a damaged one: Orbax may miss a flipped byte."""
    total = 0
    for digest in jax.device_get(digests):
        total = (total * 31 + int(digest)) % 2**32
    return {"state": total, "data": zlib.crc32(json.dumps(data, sort_keys=True).encode())}


@jax.jit
def _digest(leaf: jax.Array) -> jax.Array:
    """The sum of an array's numbers, as bits, times odd numbers by their places, modulo 2**32.

    The same however the array is split. One number that differs always shows.
    """
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


def _settings(config: ConfigDict, part: Part) -> dict[str, Any]:
    """What a run of one part depends on, as JSON gives it back."""
    plain = json.loads(config.to_json_best_effort())
    dtype = compute_dtype(config.train[part.name]).name
    train = plain.pop("train")[part.name] | {"dtype": dtype}
    sections = {}
    if isinstance(part, Stage):
        sections[part.name] = json.loads(ConfigDict(part.section).to_json_best_effort())
    for name, keys in part.depends.items():
        sections[name] = {key: plain[name][key] for key in keys}
    return {"part": part.name, "train": train, "text": plain["text"], **sections}


def _compare(folder: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises InputError if a run's settings differ in more than it may go on with."""
    old, new = (flatten_dict(settings, sep=".") for settings in (held, wanted))
    part = wanted["part"]
    free = {f"train.{name}" for name in FREE}
    free |= {f"{stage}.{name}" for stage in wanted.keys() - {"train"} for name in SAMPLING}
    different = [
        f"{re.sub('^train', f'train.{part}', key)} is {old.get(key)} there and {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in free
    ]
    inputs = [text for text in different if text.startswith("inputs.")]
    if inputs:
        raise InputError(
            f"{folder} holds a run on other data or networks: {'; '.join(inputs)}; give another "
            "--workdir"
        )
    if different:
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise InputError(
            f"{folder} holds a run with other settings: {'; '.join(different[:3])}{more}; "
            "repeat the flags that it was begun with, or give another --workdir"
        )
