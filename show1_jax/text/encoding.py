"""Running the text encoders: tokens in, the embeddings that denoisers attend to out."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder
from show1_jax.text.tokenizers import Tokens


def encode_t5(module: T5Encoder, params: Any, tokens: Tokens) -> jax.Array:
    """Embeddings of tokenized prompts by T5, which does not attend to their padding.

    Returns:
      fp32 `(batch, length, d_model)`, with values at padding too: denoisers attend
      to all of them.

    Raises:
      InputError: if the module computes in float16.
    """
    return _run(module, params, tokens.input_ids, tokens.attention_mask)


def encode_clip(module: CLIPText, params: Any, tokens: Tokens) -> jax.Array:
    """Embeddings of tokenized prompts by CLIP.

    Padding is attended to unless the module's config says otherwise, as released.

    Returns:
      fp32 `(batch, length, width)`.

    Raises:
      InputError: if there are more tokens than the encoder has positions.
    """
    mask = tokens.attention_mask if module.config.use_attention_mask else None
    return _run(module, params, tokens.input_ids, mask)


@functools.partial(jax.jit, static_argnums=0)
def _run(
    module: T5Encoder | CLIPText, params: Any, input_ids: np.ndarray, mask: np.ndarray | None
) -> jax.Array:
    return jnp.asarray(module.apply({"params": params}, input_ids, mask), jnp.float32)
