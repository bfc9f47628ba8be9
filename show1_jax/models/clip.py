"""The CLIP text encoder (Radford et al., arXiv 2103.00020), in the form of OpenCLIP ViT-H."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from show1_jax.errors import InputError
from show1_jax.models.attention import merge_heads, split_heads
from show1_jax.models.ops.activation import Activation, exact_gelu, quick_gelu


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of a CLIP text encoder; the defaults are those of the last stage.

    `use_attention_mask` tells callers whether to mask padding.
    """

    vocab_size: int = 49408
    width: int = 1024
    ff_width: int = 4096
    num_layers: int = 23
    num_heads: int = 16
    max_length: int = 77
    activation: str = "gelu"
    eps: float = 1e-5
    use_attention_mask: bool = False


ACTIVATIONS: dict[str, Activation] = {"gelu": exact_gelu, "quick_gelu": quick_gelu}


class Attention(nn.Module):
    """Multi-head self-attention."""

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps `(batch, length, width)`; `mask` is bool `(batch or 1, 1, length, length)`."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = self.config.width
        query, key, value = (
            split_heads(nn.Dense(width, name=name, **types)(x), self.config.num_heads)
            for name in ("to_q", "to_k", "to_v")
        )
        x = merge_heads(jax.nn.dot_product_attention(query, key, value, mask=mask))
        return nn.Dense(width, name="to_out", **types)(x)


class Block(nn.Module):
    """Attention, then feed-forward; each normalises its input first and has a residual."""

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps `(batch, length, width)`; `mask` is bool `(batch or 1, 1, length, length)`."""
        config = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": config.eps, "use_fast_variance": False, **types}

        h = nn.LayerNorm(name="norm1", **norm)(x)
        x = x + Attention(config, name="attention", **types)(h, mask)

        h = nn.LayerNorm(name="norm2", **norm)(x)
        h = nn.Dense(config.ff_width, name="ff_in", **types)(h)
        h = ACTIVATIONS[config.activation](h)
        return x + nn.Dense(config.width, name="ff_out", **types)(h)


class CLIPText(nn.Module):
    """A causal transformer over tokens and learned positions."""

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Encodes tokens. A token attends to itself and earlier tokens.

        Args:
          input_ids: int `(batch, length)`.
          attention_mask: `(batch, length)`, 0 at tokens that are masked. None masks no token, not
            even padding, like the released cascade.

        Returns:
          `(batch, length, width)` in the compute dtype, after the final normalisation.

        Raises:
          InputError: if there are more tokens than positions, or the activation is unknown.
        """
        config = self.config
        length = input_ids.shape[1]
        if length > config.max_length:
            raise InputError(
                f"there are {length} tokens, but CLIP takes at most {config.max_length}"
            )
        if config.activation not in ACTIVATIONS:
            raise InputError(
                f"CLIP activation {config.activation!r} is not one of {', '.join(ACTIVATIONS)}"
            )
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def embed(rows: int, name: str, index: jax.Array) -> jax.Array:
            # Cast after the look-up: casting a few rows is cheaper than casting the table.
            table = nn.Embed(rows, config.width, param_dtype=self.param_dtype, name=name)
            return table(index).astype(self.dtype)

        x = embed(config.vocab_size, "token_embedding", input_ids)
        x = x + embed(config.max_length, "position_embedding", jnp.arange(length))

        mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
        if attention_mask is not None:
            mask = mask & (attention_mask[:, None, None, :] > 0)
        for i in range(config.num_layers):
            x = Block(config, name=f"block_{i}", **types)(x, mask)
        return nn.LayerNorm(
            epsilon=config.eps, use_fast_variance=False, name="final_norm", **types
        )(x)
