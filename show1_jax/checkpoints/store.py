"""Saves and restores parameters with Orbax: whole trees, parts of them, or array by array.

Restoring puts arrays on the mesh set by `jax.set_mesh`; see `parallel/sharding.py`.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import Path
from flax.traverse_util import flatten_dict, unflatten_dict

from show1_jax.checkpoints import objects
from show1_jax.checkpoints.checksums import check_files, write_checksums
from show1_jax.checkpoints.layout import REFERENCE, params_folder
from show1_jax.checkpoints.lazy import LazyArray, LazyHandler
from show1_jax.errors import InputError, is_out_of_memory
from show1_jax.files import files_in, read_range, remove, size_of, written_folder
from show1_jax.parallel.mesh import concrete_mesh, is_shared
from show1_jax.parallel.sharding import placed
from show1_jax.paths import in_bucket

# Orbax copies this many bytes at once, besides the tree itself, or one array if it is larger.
CONCURRENT_BYTES = 64 * 2**20
SAMPLED_BYTES = 2**20  # of each file, for a fingerprint; reading all of T5-XXL takes minutes


def _checkpointer(largest: int = 0, lazy: LazyHandler | None = None) -> ocp.Checkpointer:
    # The outer handler's limits are in whole gigabytes, those of the inner one in bytes.
    limit = max(CONCURRENT_BYTES, largest + 1)
    options = ocp.options.MultiprocessingOptions()
    mesh = concrete_mesh()
    if jax.process_count() > 1 and (mesh is None or not is_shared(mesh)):
        # Only this process reads or writes. The others do not reach Orbax's barriers.
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
    """Returns the bytes of the largest array, at least in fp32, because restoring may widen it."""
    return max(leaf.size * max(leaf.dtype.itemsize, 4) for leaf in jax.tree.leaves(tree))


def save_params(folder: Path, params: Mapping[str, Any]) -> None:
    """Writes a tree of `jax.Array`s or `LazyArray`s as an Orbax checkpoint, with checksums.

    The folder appears when it is complete except for the checksums.

    Raises:
      InputError: if it cannot be written. Errors of a `LazyArray` are passed on.
    """
    lazy = any(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(params))
    try:
        # Orbax would write many small objects, which would have to be read again for checksums.
        with written_folder(folder) as place:
            with _checkpointer(_largest(params), LazyHandler() if lazy else None) as checkpointer:
                checkpointer.save(place.absolute(), ocp.args.PyTreeSave(params))
            write_checksums(place)
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{folder} cannot be written: {reason(error)}") from error


def discard(folder: Path) -> None:
    """Removes a folder to which Orbax may still be writing.

    If one of Orbax's threads fails, the others continue to write for a moment, so this repeats
    until the folder stays away. Into buckets only whole folders are copied.
    """
    if in_bucket(folder):
        remove(folder)
        return
    for _ in range(100):
        remove(folder)
        time.sleep(0.05)
        if not folder.exists():
            return


def reason(error: BaseException) -> str:
    """Extracts the reason from an error about a checkpoint.

    TensorStore's messages list the files first, then the reason, then details.
    """
    line = (str(error).splitlines() or [type(error).__name__])[0]
    said, *details = re.split(r" \[[a-z_]+(?:\[\d+\])?='", line)
    if not details:
        return getattr(error, "strerror", None) or said
    *before, last = said.split(": ")
    # Numbers need the text before them.
    return f"{before[-1]}: {last}" if before and re.match("expected=|0x", last) else last


def load_params(folder: Path, target: Any = None) -> Any:
    """Restores what `save_params` wrote; see `StoredParams`.

    Reads the mesh set by `jax.set_mesh`.
    """
    return StoredParams(folder, target).read()


class StoredParams:
    """Parameters in an Orbax checkpoint, which can be read as a whole or in parts.

    Attributes:
      folder: the checkpoint.
    """

    def __init__(self, folder: Path, target: Any = None, check: bool = True):
        """Checks the checkpoint, but reads no array yet.

        Args:
          folder: the Orbax checkpoint.
          target: tree of `jax.ShapeDtypeStruct`s that gives the dtypes to restore to. None
            restores the stored dtypes.
          check: whether all files are read for that; if not, call `check` before arrays are used.

        Raises:
          InputError: if the folder is not a checkpoint, is damaged, or does not match `target`.
        """
        self.folder = folder = folder.absolute()
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist")
        if check:
            self.check()
        stored = _stored(folder)
        if target is not None:
            check_shapes(_shapes(stored), _shapes(target), folder)
        self._wanted = stored if target is None else target

    def check(self) -> None:
        """Compares all files with their checksums.

        Raises:
          InputError: if one is damaged or missing.
        """
        with restoring(self.folder):
            check_files(self.folder)

    def read(self, names: Collection[str] | None = None) -> Any:
        """Restores arrays.

        Reads the mesh set by `jax.set_mesh`.

        Args:
          names: of subtrees at the top of the tree, such as "block_0"; None for all.

        Returns:
          The tree, sharded over the mesh; see `parallel.sharding.shardings`.

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
    """Turns errors from reading a checkpoint into an InputError of one line.

    Args:
      folder: the checkpoint.
      advice: what to do if the checkpoint is damaged.

    Raises:
      InputError: if the checkpoint cannot be read.
      MemoryError, RuntimeError or OSError: if memory is short; see `errors.is_out_of_memory`.
    """
    try:
        yield
    except InputError:
        raise
    # Orbax raises a bare Exception if TensorStore cannot read an array, and for damaged metadata
    # KeyError, TypeError, AttributeError, AssertionError and others.
    except Exception as error:
        origin: BaseException = error
        while origin.__cause__ is not None:
            origin = origin.__cause__
        if is_out_of_memory(origin):
            raise origin from None
        # The process may be out of file handles; then the checkpoint is not damaged.
        short = "RESOURCE_EXHAUSTED" in str(origin)
        line = reason(origin) + (f"; {advice}" if advice and not short else "")
        raise InputError(f"{folder} cannot be restored: {line}") from error
    finally:
        objects.tell_retries()


def describe_params(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the arrays of a checkpoint, by slashed path.

    Raises:
      InputError: if the folder is not a checkpoint, or is damaged.
    """
    return flatten_dict(_stored(folder.absolute()), sep="/")


def _stored(folder: Path) -> Any:
    """Returns the tree of a checkpoint, as shapes and dtypes."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist")
    with restoring(folder), _checkpointer() as checkpointer:
        metadata = checkpointer.metadata(folder).item_metadata
        if metadata is None:
            raise InputError(f"{folder} cannot be restored: it is not a checkpoint, or is damaged")
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.tree
        )


def visit_params(folder: Path, visit: Callable[[str, np.ndarray], None]) -> None:
    """Restores the arrays of a checkpoint one at a time.

    Args:
      folder: the Orbax checkpoint.
      visit: called with the slashed path and the value of each array, in another thread.

    Raises:
      InputError: if the folder is not a checkpoint, or is damaged. Errors of `visit` are passed on.
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
            failures.append(error)  # raised below; the checkpoint is not damaged
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
    """Computes a hash of some folders in a folder: names, sizes and first bytes of their files.

    Parameters that a part shares with another network count as its own.

    Args:
      folder: contains the parts.
      parts: names of the folders.
      salt: included in the hash.

    Raises:
      InputError: if a part refers to a network that does not exist.
    """
    digest = hashlib.sha256(salt)
    for part in parts:
        own, params = folder / part, params_folder(folder / part)
        files = {path.relative_to(folder).as_posix(): path for path in files_in(own)}
        files.pop(f"{part}/{REFERENCE}", None)
        if params.parent != own:
            for path in files_in(params):
                files[f"{part}/{path.relative_to(params.parent).as_posix()}"] = path
        for name, path in sorted(files.items(), key=lambda item: Path(item[0])):
            digest.update(f"{name} {size_of(path)}".encode())
            digest.update(read_range(path, 0, SAMPLED_BYTES))
    return digest.hexdigest()[:16]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in flatten_dict(tree, sep="/").items()}


def check_shapes(
    held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Compares the shapes in a checkpoint with those of a network, by slashed path.

    Raises:
      InputError: if a parameter is missing, unexpected or of another shape.
    """
    if held != wanted:
        different = sorted(k for k in held.keys() | wanted.keys() if held.get(k) != wanted.get(k))
        raise InputError(
            f"{folder} is of another network: {len(different)} parameters differ in name or shape, "
            f"among them {', '.join(different[:3])}"
        )
