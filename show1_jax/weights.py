"""The networks of a checkpoint in memory: one stage's at a time, or all that were used."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from show1_jax.checkpoints.released import StageFolder, encoder_folder
from show1_jax.errors import LESS_MEMORY_NETWORK, out_of_memory_as_error
from show1_jax.parallel.sharding import in_kernel_order
from show1_jax.text.encoding import TextEncoder, load_encoder, load_tokenizer
from show1_jax.text.tokenizers import Tokenizer


class Weights:
    """Reads networks, and keeps them if asked to.

    Attributes:
      keep: whether what was read stays in memory.
    """

    def __init__(self, folders: Mapping[str, StageFolder], dtype: np.dtype, keep: bool = False):
        """Nothing is read yet.

        Args:
          folders: the stages of a checkpoint.
          dtype: that networks compute in.
          keep: whether what was read stays in memory.
        """
        self.keep = keep
        self._folders, self._dtype = folders, dtype
        self._params: dict[str, Mapping[str, Any]] = {}
        self._encoders: dict[tuple[str, int], TextEncoder] = {}

    def params(
        self,
        stage: str,
        modules: Mapping[str, nn.Module],
        progress: Callable[..., None] | None = None,
    ) -> Mapping[str, Any]:
        """The parameters of a stage's networks, by name; under a mesh.

        Args:
          stage: which stage.
          modules: its networks.
          progress: is told what is read.

        Raises:
          InputError: if they cannot be read, or memory is short.
        """
        if stage in self._params:
            return self._params[stage]
        folder = self._folders[stage]
        if progress is not None:
            size = sum(folder.size(name) for name in modules)
            progress(stage, 0, 1, f"reading {_size(size)}")
        with out_of_memory_as_error(stage, LESS_MEMORY_NETWORK):
            params = {
                name: in_kernel_order(folder.params(name, module, self._dtype))
                for name, module in modules.items()
            }
        if self.keep:
            self._params[stage] = params
        return params

    def encoder(
        self, name: str, tokens: int, progress: Callable[..., None] | None = None
    ) -> TextEncoder:
        """A text encoder; under a mesh.

        Args:
          name: "t5" or "clip".
          tokens: how many tokens it reads of each prompt.
          progress: is told what is read.

        Raises:
          InputError: if it or its tokenizer is missing or damaged, or memory is short.
        """
        if (name, tokens) in self._encoders:
            return self._encoders[name, tokens]
        folder = encoder_folder(self._folders, name)
        if progress is not None:
            progress(name, 0, 1, f"reading {_size(folder.size('text_encoder'))}")
        encoder = load_encoder(folder, self._dtype, tokens, whole=self.keep)
        if self.keep:
            self._encoders[name, tokens] = encoder
        return encoder

    def tokenizer(self, name: str, tokens: int) -> Tokenizer:
        """A text encoder's tokenizer alone.

        Args:
          name: "t5" or "clip".
          tokens: how many tokens the encoder reads of each prompt.

        Raises:
          InputError: if it is missing or damaged.
        """
        folder = encoder_folder(self._folders, name)
        module: Any = folder.module("text_encoder", self._dtype)
        return load_tokenizer(folder, module, tokens)


def _size(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
