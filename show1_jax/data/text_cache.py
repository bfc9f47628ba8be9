"""A cache of text embeddings, which are computed once per caption.

It suits datasets with few different captions: an embedding of T5-XXL has 77 x 4096 numbers,
631 kB. A cache is a folder of parts:

    HASH.npy            (captions, tokens, width) float16; opened for one look-up at a time,
                        because a process can open only a limited number of files
    HASH.json           the captions of HASH.npy, in order; written after it

HASH is the hash of the captions, so that processes and runs that fill one cache at the same time do
not overwrite each other's parts. Complete parts stay, so an interrupted run continues where it
stopped, and captions can be added later. Embeddings are float16, which is three bits more precise
than bfloat16; their values are small because the encoders end in a normalisation.

A look-up reads its bytes alone: of an embedding of T5-XXL that takes a quarter of the time that
array_record takes, which keeps its files open besides.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable
from os import PathLike
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from show1_jax.errors import ARRAY_DAMAGE, InputError, why
from show1_jax.media import make_folder, write_bytes

EMPTY = ""  # always cached; replaces captions in training for classifier-free guidance

_DAMAGE: tuple[type[Exception], ...] = (*ARRAY_DAMAGE, IndexError, TypeError, RecursionError)

Encode = Callable[[list[str]], np.ndarray]


class _Rows(NamedTuple):
    """How a part stores embeddings: from which byte on, of which shape and dtype."""

    begin: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes of an embedding."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class TextCache:
    """Looks up the embeddings of captions."""

    def __init__(self, folder: str | PathLike[str]):
        """Opens a cache of `build_text_cache`; raises InputError if it is damaged."""
        self.folder = epath.Path(folder)
        self._captions: dict[str, tuple[str, int]] = {}  # name of the part, row in it
        rows: _Rows | None = None
        for path in sorted(self.folder.glob("*.json")):
            part = path.with_suffix(".npy")
            try:
                captions = json.loads(path.read_bytes())
                if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
                    raise ValueError("the .json is not a list of captions")
                rows = rows or _read_header(part)  # equal in all; opening each would take long
                size, expected = part.stat().length, rows.begin + len(captions) * rows.size
                if size != expected:
                    raise ValueError(f"the .npy has {size} bytes, but should have {expected}")
            except _DAMAGE as error:
                raise InputError(
                    f"{path} or its .npy cannot be read: {why(error)}; if they are damaged, remove "
                    "both files, and their captions are encoded again"
                ) from None
            self._captions |= {caption: (path.stem, row) for row, caption in enumerate(captions)}
        self._rows = rows

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """Pickles only the folder; the other process opens the cache again."""
        return TextCache, (str(self.folder),)

    def __contains__(self, caption: str) -> bool:
        """Returns whether the cache has a caption."""
        return caption in self._captions

    def __call__(self, caption: str) -> np.ndarray:
        """Reads the embedding of a caption, `(tokens, width)` float16.

        Raises:
          InputError: if the cache lacks the caption, or cannot be read.
        """
        if caption not in self._captions:
            raise InputError(f"{self.folder} lacks the caption {caption!r}; build the cache again")
        name, row = self._captions[caption]
        path = self.folder / f"{name}.npy"
        try:
            assert self._rows is not None
            begin, shape, dtype = self._rows
            size = self._rows.size
            with path.open("rb") as file:
                file.seek(begin + row * size)
                embedding = np.frombuffer(file.read(size), dtype).reshape(shape)
            if dtype != np.float16 or not np.isfinite(embedding).all():
                raise ValueError("it has values that are not finite float16")
            return embedding
        except _DAMAGE as error:
            raise InputError(f"{path} cannot be read: {why(error)}") from None


def _read_header(part: epath.Path) -> _Rows:
    """Reads how a part stores its embeddings."""
    with part.open("rb") as file:
        np.lib.format.read_magic(file)  # version 1.0, whose header holds every shape there is
        (_, *shape), _, dtype = np.lib.format.read_array_header_1_0(file)
        return _Rows(file.tell(), tuple(shape), dtype)


def build_text_cache(
    folder: str | PathLike[str],
    captions: Iterable[str],
    encode: Encode,
    batch_size: int = 64,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> TextCache:
    """Encodes the captions that a cache lacks.

    Args:
      folder: of the cache; made if it does not exist. Everything that changes embeddings, such as
        the encoder, must change its name.
      captions: all captions to look up later; the empty caption is added.
      encode: embeds up to `batch_size` captions, `(n, tokens, width)`.
      batch_size: number of captions that are encoded and written together.
      share: index of this process, and number of the processes that fill the cache together. A
        caption's hash says whose it is, so that they need not agree on what is lacking.
      wait: returns when the other processes have encoded their shares.

    Returns:
      The whole cache.

    Raises:
      InputError: if the cache cannot be written, or an embedding is not finite in float16.
    """
    where, (index, count) = epath.Path(folder), share
    make_folder(where)
    cache = TextCache(folder)
    own = (c for c in dict.fromkeys([EMPTY, *captions]) if zlib.crc32(c.encode()) % count == index)
    lacking = [caption for caption in own if caption not in cache]
    starts = range(0, len(lacking), batch_size)
    quiet = bool(index) or not lacking
    for start in tqdm(starts, "captions", unit="batch", leave=False, disable=quiet):
        batch = lacking[start : start + batch_size]
        with np.errstate(over="ignore"):
            embeddings = np.asarray(encode(batch)).astype(np.float16)
        if not np.isfinite(embeddings).all():
            raise InputError(f"an embedding for {folder} is not finite in float16")
        file = io.BytesIO()
        np.save(file, embeddings)
        content = json.dumps(batch).encode()
        path = where / hashlib.sha256(content).hexdigest()[:16]
        write_bytes(path.with_suffix(".npy"), file.getvalue())
        # Last, because a part without it is ignored.
        write_bytes(path.with_suffix(".json"), content)
    wait()
    return TextCache(folder) if lacking or count > 1 else cache
