"""Adapters exchanged with PEFT itself, on a 3D network of diffusers."""

import json

import jax
import numpy as np
import pytest

from show1_jax.adapters.customize import changes
from show1_jax.adapters.files import (
    Adapter,
    apply_adapters,
    base_fingerprint,
    load_adapter,
    save_adapter,
)
from show1_jax.adapters.lora import new_lora
from show1_jax.convert import load_diffusers
from tests.conftest import assert_close

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
TEMPORAL = ("temp_attentions", "temp_convs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network with random parameters, as diffusers saves it."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet3DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    randomise(torch, (p for p in net.parameters() if p.ndim > 1))
    folder = tmp_path_factory.mktemp("net") / "unet"
    net.save_pretrained(folder)
    return folder


def randomise(torch, parameters):
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def inputs():
    rng = np.random.default_rng(0)
    sample, text = (
        rng.normal(size=size).astype(np.float32) for size in ((1, 3, 8, 8, 4), (1, 5, 16))
    )
    return sample, np.array([7]), text


def theirs(net):
    torch = pytest.importorskip("torch")
    sample, timesteps, text = map(torch.from_numpy, inputs())
    with torch.no_grad():
        out = net.eval()(sample.permute(0, 4, 1, 2, 3), timesteps, text).sample
    return out.permute(0, 2, 3, 4, 1).numpy()


def ours(module, params, adapter=None):
    adapters = [(adapter, 1.0)] if adapter else []
    return np.asarray(module.apply({"params": apply_adapters(params, adapters)}, *inputs()))


def load(folder):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet3DConditionModel.from_pretrained(folder), *load_diffusers(folder)


@pytest.mark.smoke
def test_what_peft_saved_does_the_same_here(folder, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    net, module, params = load(folder)
    chosen = [
        name
        for name, layer in net.named_modules()
        if any(part in name for part in TEMPORAL)
        and isinstance(layer, torch.nn.Linear | torch.nn.Conv3d)
    ]
    before = theirs(net)
    net = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=6, target_modules=chosen))
    randomise(torch, (p for name, p in net.named_parameters() if "lora_" in name))
    net.save_pretrained(tmp_path)
    expected = theirs(net)
    assert np.abs(expected - before).max() > 0.1
    adapter = load_adapter(tmp_path / "adapter_model.safetensors", params)
    assert_close(ours(module, params, adapter), expected, 1e-4)


def test_what_is_saved_here_does_the_same_in_peft(folder, tmp_path):
    peft = pytest.importorskip("peft")
    from safetensors import safe_open

    net, module, params = load(folder)
    new, rng = new_lora(params, "temporal", 2, jax.random.key(0)), np.random.default_rng(0)
    filled = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), new)
    adapter = Adapter(changes(new, filled), base_fingerprint(params))
    save_adapter(tmp_path / "ours.safetensors", adapter)
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {
            f"base_model.model.{key.removeprefix('unet.')}": file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118
        }
    config = {key.removeprefix("unet."): value for key, value in settings.items()}
    net = peft.get_peft_model(net, peft.LoraConfig(**config))
    found = peft.set_peft_model_state_dict(net, tensors)
    assert not found.unexpected_keys
    assert not [key for key in found.missing_keys if "lora_" in key]
    expected = ours(module, params, adapter)
    assert np.abs(expected - ours(module, params)).max() > 0.1
    assert_close(theirs(net), expected, 1e-4)
