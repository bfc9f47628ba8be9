"""How a training's captions become embeddings: in each step, or once, in a cache.

`config.train.PART.text` chooses: "step", "cache", or "auto", which caches where a dataset's
different captions are few. Both give the same numbers, so a run may go on with the other.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax.checkpoints.released import StageFolder
from show1_jax.checkpoints.store import fingerprint
from show1_jax.data.text_cache import EMPTY, build_text_cache
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder
from show1_jax.parallel import hosts
from show1_jax.parallel.mesh import batch_parts, rounded_up
from show1_jax.paths import as_path
from show1_jax.text.captions import TokenizedCaptions
from show1_jax.text.cleaning import cleaner
from show1_jax.text.encoding import TextEncoder, encoder_module, load_encoder
from show1_jax.text.tokenizers import token_count
from show1_jax.training.tasks import compute_dtype

BATCH = 64  # captions encoded together for a cache, at least
MAX_CACHE_BYTES = 8 * 2**30  # that "auto" caches; a host can keep them in memory

Lookup = Callable[[str], np.ndarray]
"""What a batch has of a caption: float16 `(tokens, width)` or int32 `(2, tokens)`."""


@dataclasses.dataclass(frozen=True)
class Captions:
    """A dataset's captions, and what encodes them.

    Attributes:
      kind: of the encoder, "t5" or "clip".
      folder: has the encoder and its tokenizer.
      module: the encoder, in the dtype that it computes in.
      dtype: what the other networks compute in.
      tokens: of each caption.
      clean: whether captions are cleaned as DeepFloyd's are.
      cached: those that are encoded before training; None if each step encodes its own.
    """

    kind: str
    folder: StageFolder
    module: T5Encoder | CLIPText
    dtype: np.dtype
    tokens: int
    clean: bool
    cached: list[str] | None

    @property
    def encoder(self) -> T5Encoder | CLIPText | None:
        """The encoder that runs in each step."""
        return self.module if self.cached is None else None

    @property
    def fingerprint(self) -> str:
        """Tells text encoders apart, and what they are given."""
        return encoder_fingerprint(self.folder.folder, self.clean)

    def lookup(self, data_dir: str) -> Lookup:
        """What the data pipeline calls; it can be pickled for worker processes.

        Fills the cache, if there is one, in `data_dir`. All processes must call it.

        Raises:
          InputError: if the encoder or the tokenizer cannot be read, or the cache not be written.
        """
        if self.cached is None:
            tokenizer = self.folder.folder / "tokenizer"
            return TokenizedCaptions(self.kind, tokenizer, self.tokens, self.clean)
        name = f"{self.fingerprint}-{self.tokens}-{self.dtype.name}"
        cache = as_path(data_dir) / "text" / name
        share = (jax.process_index(), jax.process_count())
        with hosts.own_devices(every=True):
            mesh = jax.sharding.get_mesh()
            size = BATCH if mesh.empty else rounded_up(BATCH, batch_parts(mesh))
            encode = _Encode(self, size)
            return build_text_cache(
                cache, self.cached, encode, size, share, lambda: hosts.wait("captions are encoded")
            )

    def params(self) -> Any:
        """The encoder's parameters for each step, sharded over the mesh like all others.

        Matrices are in the dtype that the encoder computes in. Reads the mesh set by
        `jax.set_mesh`.

        Raises:
          InputError: if they cannot be read.
        """
        return self.folder.params("text_encoder", self.module, self.module.dtype)


class _Encode:
    """Encodes captions for a cache; reads the encoder only if one is new."""

    def __init__(self, captions: Captions, size: int):
        self._captions, self._size = captions, size
        self._clean = cleaner(captions.clean)
        self._encoder: TextEncoder | None = None

    def __call__(self, texts: list[str]) -> np.ndarray:
        captions = self._captions
        if self._encoder is None:
            arguments = (captions.folder, captions.dtype, captions.tokens)
            self._encoder = load_encoder(*arguments, whole=True)
        # Of one size always, so that it is compiled once.
        rows = [self._clean(text) for text in texts] + [""] * (self._size - len(texts))
        return self._encoder(rows)[: len(texts)]


def read_captions(
    settings: ConfigDict, text: ConfigDict, kind: str, folder: StageFolder, captions: Iterable[str]
) -> Captions:
    """Chooses how captions are encoded, and reads no more of them than that takes.

    Args:
      settings: the config's `train` section of the part.
      text: the config's section of that name.
      kind: of the encoder, "t5" or "clip".
      folder: has the encoder and its tokenizer.
      captions: of the dataset.

    Raises:
      InputError: if the encoder is missing, or the captions cannot be read.
    """
    dtype, tokens = compute_dtype(settings), token_count(kind, text.t5_tokens)
    module, _ = encoder_module(folder, dtype)
    width = module.config.d_model if isinstance(module, T5Encoder) else module.config.width
    size = 2 * tokens * width  # bytes of an embedding in float16
    limits = {"step": 0, "auto": MAX_CACHE_BYTES // size, "cache": None}
    cached = _at_most(limits[settings.text], captions)
    return Captions(kind, folder, module, dtype, tokens, text.clean_captions, cached)


def _at_most(limit: int | None, captions: Iterable[str]) -> list[str] | None:
    """The different captions and the empty one, in order; None if they are more than a limit."""
    found = {EMPTY: None}
    if limit is not None and len(found) > limit:
        return None
    for caption in captions:
        found[caption] = None
        if limit is not None and len(found) > limit:
            return None
    return list(found)


def encoder_fingerprint(folder: Path, clean: bool) -> str:
    """Tells text encoders apart, and what they are given."""
    salt = b"cleaned" if clean else b"as they are"
    return fingerprint(folder, ("text_encoder", "tokenizer"), salt)
