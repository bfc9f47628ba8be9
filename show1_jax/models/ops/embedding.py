"""Embeddings of scalars."""

import math

import jax
import jax.numpy as jnp


def sinusoidal_embedding(positions: jax.Array, channels: int) -> jax.Array:
    """Embeds `positions`, `(batch,)`, as sinusoids, `(batch, channels)` fp32, cosines first.

    From Ho et al. 2020, appendix B, and Vaswani et al. 2017, section 3.5.
    """
    half = channels // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, channels % 2)))
