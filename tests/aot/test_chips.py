"""Chips that are not here."""

import importlib.util
import re

import pytest

from show1_jax.aot.chips import GPUS, TPUS, target_config, topology
from show1_jax.errors import InputError


@pytest.mark.parametrize("name", ["", "v5e", "v5e:", "v5e:4x", "h100", "h800:8", "v5e:4x-4"])
def test_what_is_no_topology_is_refused(name):
    with pytest.raises(InputError, match="give a topology such as v5e:4x4 of v5e, v5p, v6e, h100"):
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
