"""Running the text encoders: tokens in, the embeddings that denoisers attend to out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from show1_jax.checkpoints.released import StageFolder
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder
from show1_jax.text.tokenizers import LENGTH, Tokenizer, Tokens, clip_tokenizer, t5_tokenizer


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its parameters and its tokenizer."""

    module: T5Encoder | CLIPText
    params: Any
    tokenize: Tokenizer

    def __call__(self, prompts: Sequence[str]) -> jax.Array:
        """Embeddings of cleaned prompts, fp32 `(batch, length, width)`."""
        tokens = self.tokenize(prompts)
        if isinstance(self.module, T5Encoder):
            return encode_t5(self.module, self.params, tokens)
        return encode_clip(self.module, self.params, tokens)


def load_encoder(folder: StageFolder, dtype: DTypeLike, tokens: int = LENGTH) -> TextEncoder:
    """The text encoder of a stage's folder, to compute in `dtype` on prompts of `tokens` tokens.

    Raises:
      InputError: if it or its tokenizer is missing or damaged.
    """
    module = folder.module("text_encoder", dtype)
    assert isinstance(module, T5Encoder | CLIPText)
    tokenizer = t5_tokenizer if isinstance(module, T5Encoder) else clip_tokenizer
    tokenize = tokenizer(folder.folder / "tokenizer", tokens)
    return TextEncoder(module, folder.params("text_encoder", module, dtype), tokenize)


def encode_t5(module: T5Encoder, params: Any, tokens: Tokens) -> jax.Array:
    """Embeddings of tokenized prompts by T5, which does not attend to their padding.

    Returns:
      fp32 `(batch, length, d_model)`, with values at padding too: denoisers attend
      to all of them.

    Raises:
      InputError: if the module computes in float16.
    """
    return encode(module, params, tokens.input_ids, tokens.attention_mask)


def encode_clip(module: CLIPText, params: Any, tokens: Tokens) -> jax.Array:
    """Embeddings of tokenized prompts by CLIP.

    Padding is attended to unless the module's config says otherwise, as released.

    Returns:
      fp32 `(batch, length, width)`.

    Raises:
      InputError: if there are more tokens than the encoder has positions.
    """
    mask = tokens.attention_mask if module.config.use_attention_mask else None
    return encode(module, params, tokens.input_ids, mask)


@functools.partial(jax.jit, static_argnums=0)
def encode(
    module: T5Encoder | CLIPText, params: Any, input_ids: np.ndarray, mask: np.ndarray | None
) -> jax.Array:
    """What both encoders come to: int `(batch, length)` tokens to fp32 `(batch, length, width)`."""
    return jnp.asarray(module.apply({"params": params}, input_ids, mask), jnp.float32)
