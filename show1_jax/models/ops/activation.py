"""Activation functions."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from show1_jax.errors import InputError

Activation = Callable[[jax.Array], jax.Array]


def activation(name: str) -> Activation:
    """Finds the activation that a configuration names; "gelu" is the exact one.

    Raises:
      InputError: if the name is not "gelu", "silu" or "swish".
    """
    known: dict[str, Activation] = {"gelu": exact_gelu, "silu": jax.nn.silu, "swish": jax.nn.silu}
    if name not in known:
        raise InputError(f"activation {name!r} is not one of {', '.join(known)}")
    return known[name]


@jax.custom_jvp
def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU with the error function (Hendrycks and Gimpel, eq. 2), not its tanh approximation.

    `jax.nn.gelu` uses the complementary error function, which takes six times as long on CPUs.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@exact_gelu.defjvp
def _exact_gelu_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Keeps one array for the backward pass, in the dtype of `x`."""
    (x,), (tangent,) = primals, tangents
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * math.pi) ** -0.5
    slope = (_normal_cdf(wide) + wide * density).astype(x.dtype)
    return exact_gelu(x), slope * tangent


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's cheaper approximation of GELU, `x * sigmoid(1.702 x)`."""
    return x * jax.nn.sigmoid(1.702 * x)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)
