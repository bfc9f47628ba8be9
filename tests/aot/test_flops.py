"""What the denoisers compute is what their layers ask for, and hardly more."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from show1_jax.aot.programs import text_size
from show1_jax.checkpoints.released import sampling_params
from show1_jax.configs import show1
from show1_jax.models import attention, layers
from show1_jax.models.ops import attention as attention_op
from show1_jax.models.ops.convolution import convolve, upsample
from show1_jax.parallel.mesh import make_mesh
from show1_jax.stages import by_name, names


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_released_denoiser_computes_what_its_layers_ask_for(name, monkeypatch):
    config = show1.get_config()
    stage = by_name(name).from_config(config)
    unet, size = stage.module(jnp.float32), stage.batch_shape[1:-1]
    given = (
        jax.ShapeDtypeStruct((1, *size, unet.config.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, *text_size(config, stage)), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32) if unet.config.noise_level else None,
    )
    asked: dict[str, int] = {}

    def layer(call, args, kwargs, context):
        """Each parameter of a kernel is a product and a sum at every position of the result."""
        out, module = call(*args, **kwargs), context.module
        kernel = module.variables.get("params", {}).get("kernel")
        if kernel is not None:
            asked["/".join(module.path)] = 2 * math.prod(out.shape[:-1]) * kernel.size
        return out

    def attend(query, key, value):
        """A product with each key and each value, for every query."""
        pairs = query.shape[0] * query.shape[1] * key.shape[1]
        asked[f"attention {len(asked)}"] = 4 * pairs * math.prod(query.shape[2:])
        return attention_op.attention(query, key, value)

    monkeypatch.setattr(attention, "attention", attend)
    # All queries at once: the compiler counts the pieces of a loop once.
    monkeypatch.setattr(attention_op, "MAX_CACHED_LOGIT_BYTES", 2**60)
    monkeypatch.setattr(attention_op, "MAX_LOGIT_BYTES", 2**60)

    # As TPUs do it: CPUs fuse upsampling into the convolution, which takes fewer FLOPs.
    monkeypatch.setattr(
        layers,
        "upsample_and_convolve",
        lambda x, *rest, **settings: convolve(upsample(x), *rest, **settings),
    )

    def run(params, *given):
        with nn.intercept_methods(layer):
            return unet.apply({"params": params}, *given)

    params = sampling_params(unet, jnp.float32)
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        counted = jax.jit(run).lower(params, *given).cost_analysis()["flops"]
    total = sum(asked.values())
    print(
        f"{stage}: {total / 1e12:.2f} TFLOP of {len(asked)} layers, counted {counted / total:.3f}"
    )
    # Less where a convolution meets the padding around a frame, which only the shapes count.
    assert 0.9 < counted / total <= 1.05
