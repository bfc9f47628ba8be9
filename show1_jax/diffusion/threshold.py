"""Keeping predicted clean pixels in range under strong guidance."""

import jax
import jax.numpy as jnp


def dynamic_threshold(clean: jax.Array, ratio: float, maximum: float) -> jax.Array:
    """Clips each frame to its own range [-s, s] and divides by s (arXiv 2205.11487, section 2.3).

    `clean` is (..., height, width, channels); s is the `ratio` quantile of a
    frame's absolute values, kept within [1, `maximum`].
    """
    if maximum == 1:  # s can only be 1: spare the sort
        return jnp.clip(clean, -1, 1)
    s = jnp.quantile(jnp.abs(clean), ratio, axis=(-3, -2, -1), keepdims=True)
    s = jnp.clip(s, 1, maximum)
    return jnp.clip(clean, -s, s) / s
