"""Chips that are not here."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from show1_jax.aot.chips import GPUS, TPUS, target_config, topology
from show1_jax.aot.programs import whole
from show1_jax.errors import InputError
from show1_jax.models.ops.attention import attention
from show1_jax.parallel.mesh import current_platform, make_mesh


@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e:", "v5e:4x", "h100", "h800:8", "v5e:4x-4", "v5e:4*0", "h100:8*2"]
)
def test_what_is_no_topology_is_refused(name):
    with pytest.raises(InputError, match="such as v5e:4x4 or h100:8 of v5e, v5p, v6e, h100"):
        topology(name)


@pytest.mark.parametrize("layout", ["0", "2x2x2"])
def test_gpus_have_hosts_and_no_third_side(layout):
    with pytest.raises(InputError, match="give the GPUs of a host, or hosts x GPUs"):
        topology(f"h100:{layout}")


@pytest.mark.skipif(
    bool(importlib.util.find_spec("jax_cuda12_plugin")), reason="the compiler is installed"
)
def test_a_missing_compiler_is_told_with_the_extra_that_has_it():
    with pytest.raises(InputError, match="install the extra gpu-aot"):
        topology("h100:1")


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs the extra gpu-aot"
)
@pytest.mark.parametrize("mapped", [False, True])
def test_attention_of_odd_lengths_has_gradients_on_a_gpu(mapped):
    """The keys of the released networks are 77 tokens and an even number of positions."""
    chip, devices = topology("h100:1")
    with jax.set_mesh(make_mesh({}, devices)):
        assert current_platform() == ("gpu", 9.0)
        sides = (3, 2) if mapped else (2,)  # dropout maps over clips
        inputs = [whole((*sides, length, 5, 64), jnp.bfloat16) for length in (640, 717, 717)]

        def loss(*inputs):
            function = jax.vmap(attention) if mapped else attention
            return function(*inputs).astype(jnp.float32).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile(chip.options)
    assert "__cudnn$fmhaSoftmaxBackward" in compiled.as_text()


def test_gpus_are_described_as_their_data_sheets_do():
    assert not set(GPUS) & set(TPUS)
    for gpu in GPUS.values():
        config = target_config(gpu)
        major, minor = gpu.architecture.capability
        assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in config
        assert f"(compute capability {major}.{minor})" in config
        numbers = dict(re.findall(r"(\w+): ([\d.]+)", config))
        assert int(numbers["device_memory_size"]) == int(gpu.chip.memory)
        # Dense bf16 with fp32 sums: 512 to 8,192 products a clock and multiprocessor.
        each = gpu.chip.flops / (2 * gpu.multiprocessors * gpu.clock * 1e9)
        assert 200 < each < 4200
