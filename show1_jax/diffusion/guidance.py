"""Classifier-free guidance (arXiv 2207.12598)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def guide(
    unconditional: jax.Array, conditional: jax.Array, scale: ArrayLike, channels: int
) -> jax.Array:
    """Moves a prediction away from the unconditional one, `u + scale (c - u)`, in fp32.

    Args:
      unconditional: `(..., all channels)`.
      conditional: like `unconditional`.
      scale: guidance scale; may be traced.
      channels: number of channels that are guided. The remaining ones, which hold a learned
        variance, are those of `conditional`.

    Returns:
      `(..., all channels)` fp32.
    """
    unconditional = unconditional[..., :channels].astype(jnp.float32)
    conditional = conditional.astype(jnp.float32)
    mean, variance = conditional[..., :channels], conditional[..., channels:]
    return jnp.concatenate([unconditional + scale * (mean - unconditional), variance], axis=-1)
