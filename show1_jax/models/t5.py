"""The T5 v1.1 text encoder (Raffel et al., arXiv 1910.10683; Shazeer, arXiv 2002.05202).

Blocks call `parallel.exchange.exchange`, which reads the mesh set by `jax.set_mesh`. Without a
mesh it does nothing.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from show1_jax.errors import InputError
from show1_jax.models.attention import merge_heads, split_heads
from show1_jax.parallel.exchange import Exchange, exchange


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder; the defaults are T5-v1.1-XXL."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    @property
    def block_size(self) -> int:
        """Number of elements of a block's matrices."""
        return self.d_model * (4 * self.num_heads * self.d_kv + 3 * self.d_ff)


def relative_position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Computes the bucket of every (query, key) pair, int32 `(length, length)`.

    Half of the buckets is for keys after the query. In each half, the first buckets hold one
    distance each, and the others grow geometrically up to `max_distance`. All larger distances
    share the last bucket.
    """
    positions = np.arange(length)
    relative = positions[None, :] - positions[:, None]
    distance = np.abs(relative)
    half = buckets // 2
    exact = half // 2
    # All in fp32, so that a distance on a bucket's edge is in the same bucket as in PyTorch.
    steps = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = steps / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, far) + half * (relative > 0)).astype(np.int32)


class Attention(nn.Module):
    """Self-attention without biases and without scaling of the logits."""

    config: T5Config
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, move: Exchange) -> jax.Array:
        """Maps `(batch, length, d_model)`; `bias` is fp32 `(batch, heads, length, length)`."""
        types: dict[str, Any] = {
            "use_bias": False,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }

        def product(x: jax.Array, features: int, name: str, **initial: Any) -> jax.Array:
            dense = nn.Dense(features, name=name, **types, **initial)
            return move.scatter(move.split(dense(move.gather(x))))

        heads = self.config.num_heads
        # Logits are not scaled, so queries are initialised small (as in Mesh TensorFlow's T5).
        small = nn.initializers.variance_scaling(1 / self.config.d_kv, "fan_in", "truncated_normal")
        usual = nn.initializers.lecun_normal()
        query, key, value = (
            split_heads(product(x, heads * self.config.d_kv, name, kernel_init=init), heads)
            for name, init in (("to_q", small), ("to_k", usual), ("to_v", usual))
        )
        x = merge_heads(jax.nn.dot_product_attention(query, key, value, bias=bias, scale=1.0))
        return product(x, self.config.d_model, "to_out")


class Block(nn.Module):
    """Attention, then gated feed-forward; each normalises its input first and has a residual."""

    config: T5Config
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Maps `(batch, length, d_model)`; `bias` is fp32 `(batch, heads, length, length)`."""
        config = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        move = exchange(x, config.block_size)

        h = nn.RMSNorm(epsilon=config.eps, name="norm1", **types)(x)
        x = x + Attention(config, name="attention", **types)(h, bias, move)

        h = move.gather(nn.RMSNorm(epsilon=config.eps, name="norm2", **types)(x))
        gate = move.split(nn.Dense(config.d_ff, use_bias=False, name="ff_gate", **types)(h))
        h = move.split(nn.Dense(config.d_ff, use_bias=False, name="ff_in", **types)(h))
        # The released "gated-gelu" is the tanh approximation, unlike elsewhere in the cascade.
        h = nn.gelu(gate, approximate=True) * h
        h = nn.Dense(config.d_model, use_bias=False, name="ff_out", **types)(h)
        return x + move.scatter(h)


def attention_bias(position: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Adds a mask of padding to the bias by relative position.

    Args:
      position: `(1, heads, length, length)`; see `T5Encoder.position_bias`.
      attention_mask: `(batch, length)`, 0 at padding and 1 elsewhere.

    Returns:
      fp32 `(batch, heads, length, length)`.
    """
    return position + jnp.where(
        attention_mask[:, None, None, :] > 0, 0.0, jnp.finfo(jnp.float32).min
    )


class T5Encoder(nn.Module):
    """The encoder of T5 v1.1. It computes in bfloat16 or float32, because float16 overflows."""

    config: T5Config
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:  # noqa: D102
        if jnp.dtype(self.dtype) == jnp.float16:
            raise InputError("T5 overflows in float16; compute it in bfloat16 or float32")
        config = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # Without a compute dtype, rows are cast after the look-up, which is cheaper than casting
        # the table. Embeddings are initialised as large as what a block adds, so that words
        # outweigh their context.
        self.token_embedding = nn.Embed(
            config.vocab_size,
            config.d_model,
            param_dtype=self.param_dtype,
            embedding_init=nn.initializers.normal(1.0),
        )
        self.relative_bias = nn.Embed(
            config.relative_buckets, config.num_heads, param_dtype=self.param_dtype
        )
        self.blocks = [Block(config, name=f"block_{i}", **types) for i in range(config.num_layers)]
        self.final_norm = nn.RMSNorm(epsilon=config.eps, **types)

    def position_bias(self, length: int) -> jax.Array:
        """Computes the attention bias by relative position, which all blocks share.

        Args:
          length: number of tokens.

        Returns:
          fp32 `(1, heads, length, length)`, queries before keys.
        """
        config = self.config
        buckets = relative_position_buckets(length, config.relative_buckets, config.max_distance)
        return self.relative_bias(buckets).astype(jnp.float32).transpose(2, 0, 1)[None]

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Encodes tokens. Padding is encoded too, but no token attends to it.

        Args:
          input_ids: int `(batch, length)`.
          attention_mask: `(batch, length)`, 0 at padding and 1 elsewhere.

        Returns:
          `(batch, length, d_model)` in the compute dtype.

        Raises:
          InputError: if the compute dtype is float16.
        """
        bias = attention_bias(self.position_bias(input_ids.shape[1]), attention_mask)
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x, bias)
        return self.finish(x)

    def embed(self, input_ids: jax.Array) -> jax.Array:
        """Embeds tokens `(batch, length)` for the first block, `(batch, length, d_model)`."""
        return self.token_embedding(input_ids).astype(self.dtype)

    def finish(self, x: jax.Array) -> jax.Array:
        """Normalises the output of the last block, `(batch, length, d_model)`."""
        return self.final_norm(x)
