"""Classifier-free guidance (arXiv 2207.12598)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def guide(
    unconditional: jax.Array, conditional: jax.Array, scale: ArrayLike, channels: int
) -> jax.Array:
    """Pushes a prediction away from the unconditional one, `u + scale (c - u)`, in fp32.

    Both predictions are (..., all channels) of one shape. Only the first
    `channels` are guided; any further ones hold a learned variance and stay
    those of the conditional branch. `scale` may be traced.
    """
    unconditional = unconditional[..., :channels].astype(jnp.float32)
    conditional = conditional.astype(jnp.float32)
    mean, variance = conditional[..., :channels], conditional[..., channels:]
    return jnp.concatenate([unconditional + scale * (mean - unconditional), variance], axis=-1)
