"""Attention modules: over the positions of a frame, over text, and over frames.

They call `ops.attention.attention`, which reads the mesh set by `jax.set_mesh`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from show1_jax.models.layers import GroupNorm, dtypes, layer_norm
from show1_jax.models.ops.activation import exact_gelu
from show1_jax.models.ops.attention import attention, keep_separate


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Reshapes `(batch, length, heads * width)` to `(batch, length, heads, width)`."""
    return rearrange(x, "b l (h d) -> b l h d", h=heads)


def merge_heads(x: jax.Array) -> jax.Array:
    """Reshapes `(batch, length, heads, width)` to `(batch, length, heads * width)`."""
    return rearrange(x, "b l h d -> b l (h d)")


class TextPooling(nn.Module):
    """Pools a text into one vector, which is added to the time embedding.

    The mean of the tokens, plus a learned embedding, attends to itself and to all tokens
    (Saharia et al. 2022, appendix B.1, with the attention pooling of DeepFloyd IF).
    """

    channels: int
    heads: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        """Maps `(batch, tokens, width)` to `(batch, channels)`."""
        types = dtypes(self)
        width = text.shape[-1]
        text = layer_norm("norm1", **types)(text)
        position = self.param(
            "positional_embedding",
            nn.initializers.normal(width**-0.5),
            (1, width),
            self.param_dtype,
        )
        mean = text.mean(axis=1, keepdims=True) + position.astype(text.dtype)
        tokens = jnp.concatenate([mean, text], axis=1)
        query = nn.Dense(width, name="to_q", **types)(mean)
        key = nn.Dense(width, name="to_k", **types)(tokens)
        value = nn.Dense(width, name="to_v", **types)(tokens)
        pooled = merge_heads(attention(*(split_heads(x, self.heads) for x in (query, key, value))))
        pooled = nn.Dense(self.channels, name="proj", **types)(pooled[:, 0])
        return layer_norm("norm2", **types)(pooled)


class AddedKVAttention(nn.Module):
    """Attention of a frame's positions to the frame and the text, in one softmax.

    This is DeepFloyd IF's "added key and value" form: keys and values of the text are concatenated
    to those of the image. Includes the residual connection.
    """

    heads: int
    head_dim: int
    groups: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        """Maps `(batch, frames, h, w, c)` and text `(batch, tokens, d)` to the shape of `x`."""
        types = dtypes(self)
        inner = self.heads * self.head_dim
        frames, height = x.shape[1], x.shape[2]

        def project(name: str, value: jax.Array) -> jax.Array:
            return split_heads(nn.Dense(inner, name=name, **types)(value), self.heads)

        text = GroupNorm(32, 1e-5, axes=(-2,), name="norm_cross", **types)(text)
        text_key, text_value = (
            # Every frame sees the same text.
            jnp.repeat(project(name, text), frames, axis=0)
            for name in ("add_k_proj", "add_v_proj")
        )
        h = GroupNorm(self.groups, 1e-5, name="group_norm", **types)(x)
        h = rearrange(h, "b f h w c -> (b f) (h w) c")
        for_query, for_key, for_value = keep_separate(h, h, h)
        key = jnp.concatenate([text_key, project("to_k", for_key)], axis=1)
        value = jnp.concatenate([text_value, project("to_v", for_value)], axis=1)
        h = merge_heads(attention(project("to_q", for_query), key, value))
        h = nn.Dense(x.shape[-1], name="to_out", **types)(h)
        return x + rearrange(h, "(b f) (h w) c -> b f h w c", f=frames, h=height)


class Attention(nn.Module):
    """Multi-head attention without biases for queries, keys and values."""

    heads: int
    head_dim: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Maps `(batch, length, c)`, attending to `context` `(batch, keys, d)`, to its shape."""
        types = dtypes(self)
        inner = self.heads * self.head_dim

        def project(name: str, value: jax.Array) -> jax.Array:
            return split_heads(
                nn.Dense(inner, use_bias=False, name=name, **types)(value), self.heads
            )

        for_query, for_key, for_value = keep_separate(x, context, context)
        key, value = project("to_k", for_key), project("to_v", for_value)
        h = attention(project("to_q", for_query), key, value)
        return nn.Dense(x.shape[-1], name="to_out", **types)(merge_heads(h))


class TransformerBlock(nn.Module):
    """Self-attention, attention to a context (or self-attention again), gated feed-forward."""

    heads: int
    head_dim: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Maps `(batch, length, c)` to the same shape; `context` is `(batch, keys, d)`."""
        types = dtypes(self)
        width = x.shape[-1]
        h = layer_norm("norm1", **types)(x)
        x = x + Attention(self.heads, self.head_dim, name="attn1", **types)(h, h)
        h = layer_norm("norm2", **types)(x)
        x = x + Attention(self.heads, self.head_dim, name="attn2", **types)(
            h, h if context is None else context
        )
        h = nn.Dense(8 * width, name="ff_in", **types)(layer_norm("norm3", **types)(x))
        value, gate = jnp.split(h, 2, axis=-1)
        return x + nn.Dense(width, name="ff_out", **types)(value * exact_gelu(gate))


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of each frame, with cross-attention to the text."""

    heads: int
    head_dim: int
    groups: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        """Maps `(batch, frames, h, w, c)` and text `(batch, tokens, d)` to the shape of `x`."""
        types = dtypes(self)
        frames, height = x.shape[1], x.shape[2]
        h = GroupNorm(self.groups, 1e-6, name="norm", **types)(x)
        h = rearrange(h, "b f h w c -> (b f) (h w) c")
        h = nn.Dense(self.heads * self.head_dim, name="proj_in", **types)(h)
        h = TransformerBlock(self.heads, self.head_dim, name="block_0", **types)(
            h, jnp.repeat(text, frames, axis=0)
        )
        h = nn.Dense(x.shape[-1], name="proj_out", **types)(h)
        return x + rearrange(h, "(b f) (h w) c -> b f h w c", f=frames, h=height)
