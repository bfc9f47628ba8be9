"""Configurations of the autoencoder and the text encoders, read and written."""

import json

import pytest

from show1_jax.checkpoints.network_config import (
    clip_config,
    clip_json,
    t5_config,
    t5_json,
    vae_config,
    vae_json,
)
from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPTextConfig
from show1_jax.models.t5 import T5Config
from show1_jax.models.vae import VAEConfig
from tests.conftest import RELEASE

# The released files, as diffusers 0.15 and transformers 4.27 wrote them.
RELEASED_VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.15.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
RELEASED_CLIP = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "pad_token_id": 1,
    "projection_dim": 512,
    "torch_dtype": "float16",
    "vocab_size": 49408,
}
RELEASED_T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}


def stored(path: str) -> dict:
    return json.loads((RELEASE / path / "config.json").read_text())


def test_defaults_are_the_released_networks():
    assert vae_config(RELEASED_VAE, "x") == VAEConfig()
    assert t5_config(RELEASED_T5, "x") == T5Config()
    assert clip_config(RELEASED_CLIP, "x") == CLIPTextConfig()


def test_reads_the_tiny_release():
    vae = vae_config(stored("show-1-sr2/vae"), "x")
    assert vae == VAEConfig(channels=(16, 32, 32, 32), layers_per_block=1, norm_groups=8)
    assert vae.downscale == 8
    clip = clip_config(stored("show-1-sr2/text_encoder"), "x")
    assert clip == CLIPTextConfig(743, 32, 96, 3, 4, 77, "gelu", 1e-5, False)
    t5 = t5_config(stored("show-1-base/text_encoder"), "x")
    assert t5 == T5Config(160, 32, 8, 64, 3, 4, 32, 128, 1e-6)


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(),
        VAEConfig(1, 2, 8, (16, 32), 3, 8, 0.5),
        T5Config(),
        T5Config(100, 32, 8, 64, 2, 4, 8, 16, 1e-5),
        CLIPTextConfig(),
        CLIPTextConfig(100, 32, 64, 2, 4, 20, "quick_gelu", 1e-6, True),
    ],
)
def test_what_is_written_is_read_back(config):
    write, read = {
        VAEConfig: (vae_json, vae_config),
        T5Config: (t5_json, t5_config),
        CLIPTextConfig: (clip_json, clip_config),
    }[type(config)]
    written = json.loads(json.dumps(write(config)))
    assert read(written, "x") == config


def test_released_autoencoder_is_written_as_it_was():
    version = "_diffusers_version"
    assert vae_json(VAEConfig()) | {version: RELEASED_VAE[version]} == RELEASED_VAE


def test_later_diffusers_keys_are_known():
    later = {
        "force_upcast": False,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "_name_or_path": "somewhere",
    }
    assert vae_config(RELEASED_VAE | later, "x") == VAEConfig()


@pytest.mark.parametrize(
    ("read", "released", "change", "message"),
    [
        (vae_config, RELEASED_VAE, {"_class_name": "VQModel"}, "AutoencoderKL"),
        (vae_config, RELEASED_VAE, {"shift_factor": 0.1}, "shift_factor"),
        (vae_config, RELEASED_VAE, {"use_quant_conv": False}, "use_quant_conv"),
        (vae_config, RELEASED_VAE, {"act_fn": "gelu"}, "act_fn"),
        (vae_config, RELEASED_VAE, {"novelty": 1}, "novelty"),
        (vae_config, RELEASED_VAE, {"norm_num_groups": 48}, "norm_num_groups"),
        (vae_config, RELEASED_VAE, {"block_out_channels": []}, "block_out_channels"),
        (vae_config, RELEASED_VAE, {"block_out_channels": [128, "a"]}, "block_out_channels"),
        (vae_config, RELEASED_VAE, {"block_out_channels": [128, 256]}, "down_block_types"),
        (vae_config, RELEASED_VAE, {"up_block_types": ["AttnUp"] * 4}, "up_block_types"),
        (vae_config, RELEASED_VAE, {"layers_per_block": 0}, "layers_per_block"),
        (vae_config, RELEASED_VAE, {"scaling_factor": "a"}, "scaling_factor"),
        (t5_config, RELEASED_T5, {"model_type": "bert"}, "model_type"),
        (t5_config, RELEASED_T5, {"feed_forward_proj": "relu"}, "gated-gelu"),
        (t5_config, RELEASED_T5, {"dense_act_fn": "gelu"}, "dense_act_fn"),
        (t5_config, RELEASED_T5, {"d_model": None}, "d_model"),
        (t5_config, RELEASED_T5, {"relative_attention_num_buckets": 2}, "num_buckets"),
        (t5_config, RELEASED_T5, {"relative_attention_max_distance": 8}, "max_distance"),
        (clip_config, RELEASED_CLIP, {"model_type": "clip"}, "model_type"),
        (clip_config, RELEASED_CLIP, {"hidden_act": "relu"}, "hidden_act"),
        (clip_config, RELEASED_CLIP, {"num_attention_heads": 5}, "num_attention_heads"),
        (clip_config, RELEASED_CLIP, {"use_attention_mask": "yes"}, "use_attention_mask"),
    ],
)
def test_what_is_not_implemented_is_refused(read, released, change, message):
    with pytest.raises(InputError, match=message) as error:
        read(released | change, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
    assert "\n" not in str(error.value)


def test_a_t5_without_its_feed_forward_is_the_first_t5():
    released = {k: v for k, v in RELEASED_T5.items() if k != "feed_forward_proj"}
    with pytest.raises(InputError, match="feed_forward_proj"):
        t5_config(released, "x")
