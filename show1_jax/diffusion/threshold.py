"""Limits predicted clean pixels, which strong guidance moves out of range."""

import jax
import jax.numpy as jnp


def dynamic_threshold(clean: jax.Array, ratio: float, maximum: float) -> jax.Array:
    """Clips each frame to its own range [-s, s] and divides by s (arXiv 2205.11487, section 2.3).

    Args:
      clean: `(..., height, width, channels)`.
      ratio: s is this quantile of a frame's absolute values.
      maximum: s is clipped to [1, `maximum`].
    """
    if maximum == 1:  # s is always 1, so do not sort
        return jnp.clip(clean, -1, 1)
    s = jnp.quantile(jnp.abs(clean), ratio, axis=(-3, -2, -1), keepdims=True)
    s = jnp.clip(s, 1, maximum)
    return jnp.clip(clean, -s, s) / s
