"""What the denoisers compute is what their layers ask for, and hardly more."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from configs import show1
from show1_jax.checkpoints.released import sampling_params
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.models.vae import VAEConfig
from show1_jax.parallel.mesh import make_mesh
from show1_jax.parallel.programs import text_size
from show1_jax.stages.cascade import STAGES, sample_size


def products(jaxpr: Jaxpr) -> int:
    """FLOPs of a program's matrix products and convolutions, by their shapes.

    Loops, over queries that attend a few at a time, are counted once, as the compiler does.
    """
    total = 0
    for equation in jaxpr.eqns:
        out = 2 * math.prod(equation.outvars[0].aval.shape)
        shapes = [operand.aval.shape for operand in equation.invars]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            channels = equation.params["dimension_numbers"].rhs_spec[0]
            total += out * math.prod(shapes[1]) // shapes[1][channels]
        for value in equation.params.values():
            inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            total += products(inner) if isinstance(inner, Jaxpr) else 0
    return total


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_released_denoiser_computes_little_beside_its_products(stage):
    config = show1.get_config()
    unet = UNet(UNetConfig(**config[stage].unet), jnp.float32)
    vae = VAEConfig(**config.translation.vae)
    size = sample_size(config, stage, 1, vae)[1:-1]
    given = (
        jax.ShapeDtypeStruct((1, *size, unet.config.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, *text_size(config, stage)), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32) if unet.config.noise_level else None,
    )
    params = sampling_params(unet, jnp.float32)
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        traced = jax.jit(lambda params, *given: unet.apply({"params": params}, *given)).trace(
            params, *given
        )
        counted = traced.lower().cost_analysis()["flops"]
    asked = products(traced.jaxpr.jaxpr)
    print(f"{stage}: {asked / 1e12:.2f} TFLOP of products, {counted / asked:.3f} times that in all")
    # Less where a convolution meets the padding around a frame, which only the shapes count.
    assert 0.9 < counted / asked <= 1.05
