"""Text embeddings, computed once per caption and kept beside the dataset.

For small vocabularies of captions: T5-XXL makes 77 x 4096 numbers, 631 kB, of
each. A cache is a folder:

    HASH.npy            (captions, tokens, width) float16; opened for each look-up alone,
                        since a process may not have many files open at once
    HASH.json           the captions of HASH.npy, in order; written after it

HASH is that of the captions, so that runs that fill one cache at the same time
do not write over each other. Parts that are whole stay, so an interrupted run goes
on where it stopped, and more captions can be added. Float16, because the
encoders end in a normalisation that keeps values small, and it is three bits
more precise than bfloat16.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from show1_jax.errors import ARRAY_DAMAGE, InputError
from show1_jax.media import make_folder, write_bytes

EMPTY = ""  # always cached: what captions are replaced by for classifier-free guidance

_DAMAGE: tuple[type[Exception], ...] = (*ARRAY_DAMAGE, IndexError, TypeError, RecursionError)

Encode = Callable[[list[str]], np.ndarray]


class TextCache:
    """Looks up the embeddings of captions."""

    def __init__(self, folder: str | Path):
        """Opens the cache that `build_text_cache` wrote. Raises InputError if it is damaged."""
        self.folder = Path(folder)
        self._rows: dict[str, tuple[str, int]] = {}  # the part's name, and the row in it
        header = row_size = 0
        for path in sorted(self.folder.glob("*.json")):
            part = path.with_suffix(".npy")
            try:
                captions = json.loads(path.read_bytes())
                if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
                    raise ValueError("the .json is no list of captions")
                if not row_size:  # the same in all: to open each would take long
                    first = np.load(part, mmap_mode="r")
                    header, row_size = first.offset, first[0].nbytes
                size, expected = part.stat().st_size, header + len(captions) * row_size
                if size != expected:
                    raise ValueError(f"the .npy has {size} bytes, not {expected}")
            except _DAMAGE as error:
                raise InputError(
                    f"{path} or its .npy cannot be read: {error}; "
                    "if they are damaged, remove both, and their captions are encoded again"
                ) from None
            self._rows |= {caption: (path.stem, row) for row, caption in enumerate(captions)}

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        """Opened again in another process, rather than copied there."""
        return TextCache, (self.folder,)

    def __contains__(self, caption: str) -> bool:
        """Whether the caption can be looked up."""
        return caption in self._rows

    def __call__(self, caption: str) -> np.ndarray:
        """The embedding of a caption: `(tokens, width)` float16.

        Raises InputError if it is not there, or cannot be read.
        """
        if caption not in self._rows:
            raise InputError(f"{self.folder} lacks the caption {caption!r}: build the cache again")
        name, row = self._rows[caption]
        path = self.folder / f"{name}.npy"
        try:
            embedding = np.array(np.load(path, mmap_mode="r")[row])
            if embedding.dtype != np.float16 or not np.isfinite(embedding).all():
                raise ValueError("it holds other than embeddings")
            return embedding
        except _DAMAGE as error:
            raise InputError(f"{path} cannot be read: {error}") from None


def build_text_cache(
    folder: str | Path, captions: Iterable[str], encode: Encode, batch_size: int = 64
) -> TextCache:
    """Encodes the captions that a cache lacks.

    Args:
      folder: of the cache; made if it is not there. One for each encoder: whatever
        changes embeddings should change its name.
      captions: to be looked up later; the empty one is added.
      encode: embeds up to `batch_size` captions: `(n, tokens, width)`.
      batch_size: captions encoded and written together.

    Returns:
      The whole cache.

    Raises:
      InputError: if it cannot be written, or an embedding is beyond float16.
    """
    folder = Path(folder)
    make_folder(folder)
    cache = TextCache(folder)
    lacking = [c for c in dict.fromkeys([EMPTY, *captions]) if c not in cache]
    starts = range(0, len(lacking), batch_size)
    for start in tqdm(starts, "captions", unit="batch", leave=False, disable=not lacking):
        batch = lacking[start : start + batch_size]
        with np.errstate(over="ignore"):
            embeddings = np.asarray(encode(batch)).astype(np.float16)
        if not np.isfinite(embeddings).all():
            raise InputError(f"an embedding for {folder} is not finite in float16")
        file = io.BytesIO()
        np.save(file, embeddings)
        content = json.dumps(batch).encode()
        path = folder / hashlib.sha256(content).hexdigest()[:16]
        write_bytes(path.with_suffix(".npy"), file.getvalue())
        write_bytes(path.with_suffix(".json"), content)  # last: without it a part does not count
    return TextCache(folder) if lacking else cache
