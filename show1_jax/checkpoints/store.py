"""Parameters in and out of Orbax: whole trees, parts of them, or array by array."""

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from show1_jax.checkpoints.checksums import check_files, write_checksums
from show1_jax.checkpoints.layout import REFERENCE, params_folder
from show1_jax.checkpoints.lazy import LazyArray, LazyHandler
from show1_jax.errors import InputError, short_of_memory
from show1_jax.parallel.mesh import is_shared
from show1_jax.parallel.sharding import placed

# Orbax copies this many bytes at once beside the tree itself, or one array if that is larger.
CONCURRENT_BYTES = 64 * 2**20
SAMPLED_BYTES = 2**20  # of each file, for a fingerprint: weights of T5-XXL take minutes to read


def _checkpointer(largest: int = 0, lazy: LazyHandler | None = None) -> ocp.Checkpointer:
    # The handler's own limits count whole gigabytes; those of the one inside count bytes.
    limit = max(CONCURRENT_BYTES, largest + 1)
    options = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1 and not is_shared(jax.sharding.get_mesh()):
        # This process alone reads or writes: the others do not come to Orbax's barriers.
        own = jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
        )
    types = lazy and ocp.type_handlers.create_type_handler_registry(
        (LazyArray, lazy), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    inner = ocp.BasePyTreeCheckpointHandler(
        save_concurrent_bytes=limit,
        restore_concurrent_bytes=limit,
        multiprocessing_options=options,
        **({"type_handler_registry": types} if types else {}),
    )
    handler = ocp.PyTreeCheckpointHandler(handler_impl=inner, multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _largest(tree: Any) -> int:
    """Bytes of the largest array of a tree, in fp32 at least: restoring may widen it."""
    return max(leaf.size * max(leaf.dtype.itemsize, 4) for leaf in jax.tree.leaves(tree))


def save_params(folder: Path, params: Mapping[str, Any]) -> None:
    """Writes a tree of `jax.Array`s, or one of `LazyArray`s, as one Orbax checkpoint.

    The folder appears only when it is complete, but for the checksums of its files.

    Raises:
      InputError: if it cannot be written. What a `LazyArray` raises is passed on.
    """
    lazy = any(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(params))
    try:
        with _checkpointer(_largest(params), LazyHandler() if lazy else None) as checkpointer:
            checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(params))
        write_checksums(folder)
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{folder} cannot be written: {reason(error)}") from error


def discard(folder: Path) -> None:
    """Removes a folder into which a checkpoint may have been written.

    When one of Orbax's threads fails, the others write on for a moment: the
    folder is gone when it stays gone.
    """
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def reason(error: BaseException) -> str:
    """What went wrong with a checkpoint, in few words.

    TensorStore says it last, behind all the files that were involved and before details.
    """
    line = (str(error).splitlines() or [type(error).__name__])[0]
    said, *details = re.split(r" \[[a-z_]+(?:\[\d+\])?='", line)
    if not details:
        return getattr(error, "strerror", None) or said
    *before, last = said.split(": ")
    # Numbers say little without what they are of.
    return f"{before[-1]}: {last}" if before and re.match("expected=|0x", last) else last


def load_params(folder: Path, target: Any = None) -> Any:
    """Restores what `save_params` wrote; see `StoredParams`."""
    return StoredParams(folder, target).read()


class StoredParams:
    """Parameters in an Orbax checkpoint, to be read whole or in parts.

    Attributes:
      folder: the checkpoint.
    """

    def __init__(self, folder: Path, target: Any = None):
        """Checks what is there; no array is read yet.

        Args:
          folder: the Orbax checkpoint.
          target: tree of `jax.ShapeDtypeStruct`s; each array is restored into its
            dtype. None restores shapes and dtypes as stored.

        Raises:
          InputError: if the folder is no checkpoint, is damaged, or does not hold
            what `target` describes.
        """
        self.folder = folder = folder.absolute()
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist")
        with restoring(folder):
            check_files(folder)
        stored = _stored(folder)
        if target is not None:
            check_shapes(_shapes(stored), _shapes(target), folder)
        self._wanted = stored if target is None else target

    def read(self, names: Collection[str] | None = None) -> Any:
        """Restores arrays.

        Args:
          names: of what to restore at the top of the tree, such as "block_0"; None for all.

        Returns:
          The tree, each array where it belongs on the mesh that is set; see
          `parallel/sharding.py`.

        Raises:
          InputError: if an array is damaged.
        """
        wanted = self._wanted
        if names is not None:
            wanted = {name: wanted[name] for name in names}
        wanted = placed(wanted)
        with restoring(self.folder):
            arguments = ocp.args.PyTreeRestore(
                wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=names is not None,
            )
            with _checkpointer(_largest(wanted)) as checkpointer:
                return checkpointer.restore(self.folder, arguments)


@contextlib.contextmanager
def restoring(folder: Path, advice: str = "") -> Iterator[None]:
    """Turns what goes wrong with reading a checkpoint into one line.

    Args:
      folder: the checkpoint.
      advice: what to do if it is damaged.

    Raises:
      InputError: if it cannot be read.
      MemoryError: if memory is short, or RuntimeError or OSError; see `errors.fitting`.
    """
    try:
        yield
    except InputError:
        raise
    # Orbax raises Exception itself where TensorStore cannot read an array, and whatever its own
    # code meets in damaged metadata: KeyError, TypeError, AttributeError, AssertionError, …
    except Exception as error:
        origin: BaseException = error
        while origin.__cause__ is not None:
            origin = origin.__cause__
        if short_of_memory(origin):
            raise origin from None
        # Short of file handles, for one: no reason to give up on the checkpoint.
        short = "RESOURCE_EXHAUSTED" in str(origin)
        line = reason(origin) + (f"; {advice}" if advice and not short else "")
        raise InputError(f"{folder} cannot be restored: {line}") from error


def describe_params(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays of a checkpoint, by slashed path.

    Raises:
      InputError: if the folder is no checkpoint, or is damaged.
    """
    return flatten_dict(_stored(folder.absolute()), sep="/")


def _stored(folder: Path) -> Any:
    """The tree of a checkpoint, as shapes and dtypes."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist")
    with restoring(folder), _checkpointer() as checkpointer:
        metadata = checkpointer.metadata(folder).item_metadata
        if metadata is None:
            raise InputError(f"{folder} cannot be restored: it is no checkpoint, or is damaged")
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.tree
        )


def visit_params(folder: Path, visit: Callable[[str, np.ndarray], None]) -> None:
    """Restores the arrays of a checkpoint one at a time.

    Args:
      folder: the Orbax checkpoint.
      visit: receives the slashed path and the value of each, in another thread.

    Raises:
      InputError: if the folder is no checkpoint, or is damaged. What `visit` raises is passed on.
    """
    with restoring(folder):
        check_files(folder)
    described = describe_params(folder)
    paths = {path.replace("/", "."): path for path in described}
    failures: list[Exception] = []

    def guarded(name: str, array: np.ndarray) -> None:
        try:
            visit(paths[name], array)
        except Exception as error:
            failures.append(error)  # passed on below: the checkpoint is not to blame
            raise

    wanted = unflatten_dict(described, sep="/")
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=LazyArray), wanted)
    try:
        with restoring(folder), _checkpointer(lazy=LazyHandler(guarded)) as checkpointer:
            checkpointer.restore(
                folder.absolute(), ocp.args.PyTreeRestore(wanted, restore_args=arguments)
            )
    except InputError:
        if failures:
            raise failures[0] from None
        raise


def fingerprint(folder: Path, parts: Sequence[str], salt: bytes = b"") -> str:
    """Tells apart what folders of a folder hold, by names, sizes and first bytes of files.

    Parameters that a part shares with another network count as its own.

    Raises:
      InputError: if it refers to a network that is not there.
    """
    digest = hashlib.sha256(salt)
    for part in parts:
        own, params = folder / part, params_folder(folder / part)
        files = {path.relative_to(folder).as_posix(): path for path in own.rglob("*")}
        files.pop(f"{part}/{REFERENCE}", None)
        if params.parent != own:
            for path in params.rglob("*"):
                files[f"{part}/{path.relative_to(params.parent).as_posix()}"] = path
        for name, path in sorted(files.items(), key=lambda item: Path(item[0])):
            if path.is_file():
                digest.update(f"{name} {path.stat().st_size}".encode())
                with path.open("rb") as file:
                    digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()[:16]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in flatten_dict(tree, sep="/").items()}


def check_shapes(
    held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Compares the shapes that a checkpoint holds with those of a network, by slashed path.

    Raises:
      InputError: if a parameter is missing, unexpected or in another shape.
    """
    if held != wanted:
        different = sorted(k for k in held.keys() | wanted.keys() if held.get(k) != wanted.get(k))
        raise InputError(
            f"{folder} does not hold this network: {len(different)} parameters differ in "
            f"name or shape, among them {', '.join(different[:3])}"
        )
