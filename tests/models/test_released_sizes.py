"""The networks of `configs/show1.py` have the sizes of the released ones; nothing is allocated."""

import math

import pytest
from flax.traverse_util import flatten_dict

from show1_jax.checkpoints.networks import abstract_params
from show1_jax.configs import show1
from show1_jax.models.clip import CLIPText, CLIPTextConfig
from show1_jax.models.t5 import T5Config, T5Encoder
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.models.vae import VAE, VAEConfig

CONFIG = show1.get_config()


def sizes(module) -> dict[str, int]:
    """The number of values of every parameter."""
    flat = flatten_dict(abstract_params(module), sep="/")
    return {path: math.prod(value.shape) for path, value in flat.items()}


@pytest.mark.parametrize(
    ("stage", "total", "temporal", "attention"),
    [
        ("keyframes", 1_726_848_390, 791_482_560, 493_813_440),
        pytest.param(
            "interpolation", 1_726_859_910, 791_482_560, 493_813_440, marks=pytest.mark.slow
        ),
        ("first_frame", 1_243_277_190, 0, 0),
        ("super_resolution", 796_343_046, 335_278_848, 194_883_840),
        ("translation", 1_411_233_860, 545_323_136, 272_850_880),
    ],
)
def test_denoisers(stage, total, temporal, attention):
    counted = sizes(UNet(UNetConfig(**CONFIG[stage].unet)))
    assert sum(counted.values()) == total
    attends, convolves, before = (
        sum(size for path, size in counted.items() if name in path)
        for name in ("temporal_attention", "temporal_conv", "input_transformer")
    )
    assert attends == attention
    assert attends + convolves + before == temporal


def test_autoencoder():
    config = VAEConfig(**CONFIG.translation.vae)
    assert config == VAEConfig()
    assert sum(sizes(VAE(config)).values()) == 83_653_863


def test_text_encoders():
    t5, clip = T5Config(**CONFIG.text.t5), CLIPTextConfig(**CONFIG.text.clip)
    assert t5 == T5Config()
    assert clip == CLIPTextConfig()
    assert sum(sizes(T5Encoder(t5)).values()) == 4_762_310_656
    assert sum(sizes(CLIPText(clip)).values()) == 340_387_840
