"""Text embeddings, computed once per caption and kept beside the dataset.

For small vocabularies of captions: T5-XXL makes 77 x 4096 numbers, 631 kB, of
each. A cache is a folder:

    encoder.txt         the fingerprint of who made it
    00000.npy           (captions, tokens, width) float16, memory-mapped when read
    00000.json          the captions of 00000.npy, in order; written after it
    00001.npy ...

Float16, because the encoders end in a normalisation that keeps values small,
and it is three bits more precise than bfloat16. Parts that are whole stay, so
an interrupted run goes on where it stopped, and more captions can be added.
"""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from show1_jax.errors import InputError

EMPTY = ""  # always cached: what captions are replaced by for classifier-free guidance

Encode = Callable[[list[str]], np.ndarray]


class TextCache:
    """Looks up the embeddings of captions."""

    def __init__(self, folder: str | Path, fingerprint: str):
        """Opens a cache.

        Args:
          folder: that `build_text_cache` wrote.
          fingerprint: the encoder's.

        Raises:
          InputError: if there is no cache, it is damaged, or another encoder made it.
        """
        self.folder, self._fingerprint = Path(folder), fingerprint
        _check_encoder(self.folder, fingerprint)
        self._rows: dict[str, tuple[np.ndarray, int]] = {}
        for path in sorted(self.folder.glob("[0-9]*.json")):
            try:
                captions = json.loads(path.read_text())
                part = np.load(path.with_suffix(".npy"), mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{path} or its .npy cannot be read: {error}") from None
            self._rows |= {caption: (part, row) for row, caption in enumerate(captions)}

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        """Opened again in another process, rather than copied there."""
        return TextCache, (self.folder, self._fingerprint)

    def __contains__(self, caption: str) -> bool:
        """Whether the caption can be looked up."""
        return caption in self._rows

    def __call__(self, caption: str) -> np.ndarray:
        """The embedding of a caption: `(tokens, width)` float16.

        Raises InputError if it is not there.
        """
        if caption not in self._rows:
            raise InputError(f"{self.folder} lacks the caption {caption!r}: build the cache again")
        part, row = self._rows[caption]
        return np.array(part[row])


def build_text_cache(
    folder: str | Path,
    captions: Iterable[str],
    encode: Encode,
    fingerprint: str,
    batch_size: int = 64,
) -> TextCache:
    """Encodes the captions that a cache lacks; to be run by one process at a time.

    Args:
      folder: of the cache; made if it is not there.
      captions: to be looked up later; the empty one is added.
      encode: embeds up to `batch_size` captions: `(n, tokens, width)`.
      fingerprint: tells encoders apart; whatever changes embeddings should change it.
      batch_size: captions encoded and written together.

    Returns:
      The whole cache.

    Raises:
      InputError: if another encoder made the cache, it cannot be written, or an
        embedding is beyond float16.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "encoder.txt").exists():
            _write(folder / "encoder.txt", fingerprint.encode())
        cache = TextCache(folder, fingerprint)
        lacking = [c for c in dict.fromkeys([EMPTY, *captions]) if c not in cache]
        number = len(list(folder.glob("[0-9]*.json")))
        for start in range(0, len(lacking), batch_size):
            batch = lacking[start : start + batch_size]
            with np.errstate(over="ignore"):
                embeddings = np.asarray(encode(batch)).astype(np.float16)
            if not np.isfinite(embeddings).all():
                raise InputError(f"an embedding of {fingerprint} is not finite in float16")
            _write_part(folder / f"{number:05d}", batch, embeddings)
            number += 1
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    return TextCache(folder, fingerprint)


def _check_encoder(folder: Path, fingerprint: str) -> None:
    path = folder / "encoder.txt"
    if not path.is_file():
        raise InputError(f"{folder} is not a text cache: build one")
    if (made_by := path.read_text()) != fingerprint:
        raise InputError(
            f"{folder} was made by the encoder {made_by!r}, not {fingerprint!r}: "
            "remove it or give another folder"
        )


def _write_part(path: Path, captions: list[str], embeddings: np.ndarray) -> None:
    """The captions last: a part without them does not count."""
    file = io.BytesIO()
    np.save(file, embeddings)
    _write(path.with_suffix(".npy"), file.getvalue())
    _write(path.with_suffix(".json"), json.dumps(captions).encode())


def _write(path: Path, content: bytes) -> None:
    """Puts a whole file in place at once."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.rename(path)
