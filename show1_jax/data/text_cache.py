"""A cache of text embeddings, which are computed once per caption.

It suits datasets with few different captions: an embedding of T5-XXL has 77 x 4096 numbers,
631 kB. A cache is a folder of parts:

    HASH.npy            (captions, tokens, width) float16; opened for one look-up at a time,
                        because a process can open only a limited number of files
    HASH.json           the captions of HASH.npy, in order; written after it

HASH is the hash of the captions, so that runs that fill one cache at the same time do not
overwrite each other's parts. Complete parts stay, so an interrupted run continues where it stopped,
and captions can be added later. Embeddings are float16, which is three bits more precise than
bfloat16; their values are small because the encoders end in a normalisation.
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

EMPTY = ""  # always cached; replaces captions in training for classifier-free guidance

_DAMAGE: tuple[type[Exception], ...] = (*ARRAY_DAMAGE, IndexError, TypeError, RecursionError)

Encode = Callable[[list[str]], np.ndarray]


class TextCache:
    """Looks up the embeddings of captions."""

    def __init__(self, folder: str | Path):
        """Opens a cache of `build_text_cache`; raises InputError if it is damaged."""
        self.folder = Path(folder)
        self._rows: dict[str, tuple[str, int]] = {}  # name of the part, row in it
        header = row_size = 0
        for path in sorted(self.folder.glob("*.json")):
            part = path.with_suffix(".npy")
            try:
                captions = json.loads(path.read_bytes())
                if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
                    raise ValueError("the .json is not a list of captions")
                if not row_size:  # equal in all parts; opening each would take long
                    first = np.load(part, mmap_mode="r")
                    header, row_size = first.offset, first[0].nbytes
                size, expected = part.stat().st_size, header + len(captions) * row_size
                if size != expected:
                    raise ValueError(f"the .npy has {size} bytes, but should have {expected}")
            except _DAMAGE as error:
                raise InputError(
                    f"{path} or its .npy cannot be read: {error}; if they are damaged, remove both "
                    "files, and their captions are encoded again"
                ) from None
            self._rows |= {caption: (path.stem, row) for row, caption in enumerate(captions)}

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        """Pickles only the folder; the other process opens the cache again."""
        return TextCache, (self.folder,)

    def __contains__(self, caption: str) -> bool:
        """Returns whether the cache has a caption."""
        return caption in self._rows

    def __call__(self, caption: str) -> np.ndarray:
        """Reads the embedding of a caption, `(tokens, width)` float16.

        Raises:
          InputError: if the cache lacks the caption, or cannot be read.
        """
        if caption not in self._rows:
            raise InputError(f"{self.folder} lacks the caption {caption!r}; build the cache again")
        name, row = self._rows[caption]
        path = self.folder / f"{name}.npy"
        try:
            embedding = np.array(np.load(path, mmap_mode="r")[row])
            if embedding.dtype != np.float16 or not np.isfinite(embedding).all():
                raise ValueError("it has values that are not finite float16")
            return embedding
        except _DAMAGE as error:
            raise InputError(f"{path} cannot be read: {error}") from None


def build_text_cache(
    folder: str | Path, captions: Iterable[str], encode: Encode, batch_size: int = 64
) -> TextCache:
    """Encodes the captions that a cache lacks.

    Args:
      folder: of the cache; made if it does not exist. Everything that changes embeddings, such as
        the encoder, must change its name.
      captions: all captions to look up later; the empty caption is added.
      encode: embeds up to `batch_size` captions, `(n, tokens, width)`.
      batch_size: number of captions that are encoded and written together.

    Returns:
      The whole cache.

    Raises:
      InputError: if the cache cannot be written, or an embedding is not finite in float16.
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
        write_bytes(
            path.with_suffix(".json"), content
        )  # last, because a part without it is ignored
    return TextCache(folder) if lacking else cache
