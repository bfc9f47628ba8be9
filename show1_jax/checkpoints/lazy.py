"""Saves and restores Orbax checkpoints one array at a time.

Orbax saves and restores whole trees. The leaf type here is read when it is saved, and passed on
as soon as it is restored, so that only a few arrays of a network are in memory at once. The
results are ordinary checkpoints of NumPy arrays.
"""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# Size of groups of arrays that are written together. Each group is synchronised to the disk.
GROUP_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is read when it is saved; a leaf of a tree for `store.save_params`.

    Attributes:
      shape: of the array.
      dtype: of the array.
      read: returns the array; called once, in another thread.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize


class LazyHandler(ocp.type_handlers.NumpyHandler):
    """Saves `LazyArray`s, and passes restored arrays on instead of returning them."""

    def __init__(self, visit: Callable[[str, np.ndarray], None] | None = None):
        """Makes a handler for one checkpoint.

        Args:
          visit: called with the dotted name and the value of each restored array.
        """
        try:
            # Nobody else has the arrays that are read here, so they need no copy.
            super().__init__(deepcopy_host_arrays=False)
        except TypeError:  # older releases of Orbax always copy
            super().__init__()
        self._visit = visit

    async def serialize(
        self,
        values: Sequence[LazyArray],
        infos: Sequence[Any],
        args: Sequence[Any] | None = None,
    ) -> Sequence[Any]:
        """Writes all values, and reads the next group while one is written."""
        args = args or [ocp.SaveArgs()] * len(values)
        writing: Sequence[Any] = []
        group: list[tuple[np.ndarray, Any, Any]] = []

        async def write() -> Sequence[Any]:
            for each in writing:
                await asyncio.to_thread(each.result)
            started = await super(LazyHandler, self).serialize(*zip(*group, strict=True))
            group.clear()
            return started

        for value, info, arg in zip(values, infos, args, strict=True):
            # Compression is slower than disks, and weights hardly shrink. Some releases of Orbax
            # do not have this option.
            if hasattr(info, "use_compression"):
                info.use_compression = False
            array = await asyncio.to_thread(value.read)
            if group and sum(each.nbytes for each, _, _ in group) + array.nbytes > GROUP_BYTES:
                writing = await write()
            group.append((array, info, arg))
            del array
        if group:
            writing = await write()
        for each in writing:
            await asyncio.to_thread(each.result)
        return []

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        """Restores the arrays one by one; returns only their shapes and dtypes."""
        assert self._visit is not None, "this handler only saves"
        args = args or [ocp.RestoreArgs()] * len(infos)
        found = []
        visiting: asyncio.Future[None] | None = None
        for info, arg in zip(infos, args, strict=True):
            (array,) = await super().deserialize([info], [arg])
            found.append(jax.ShapeDtypeStruct(array.shape, array.dtype))
            if visiting is not None:
                await visiting
            visiting = asyncio.ensure_future(asyncio.to_thread(self._visit, info.name, array))
            del array
        if visiting is not None:
            await visiting
        return found

    def memory_size(self, values: Sequence[Any]) -> Sequence[tuple[int, int]]:
        """Returns the bytes that Orbax reports as written and read."""
        return [(value.size * value.dtype.itemsize,) * 2 for value in values]
