"""Converts the released `config.json` of each network to our configs, and back.

Files of diffusers are read strictly: an unknown key is an error. Files of transformers have dozens
of defaults for text generation, so only the keys that change what the encoder computes are read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from show1_jax.checkpoints.fields import Fields
from show1_jax.errors import InputError
from show1_jax.models.clip import ACTIVATIONS, CLIPTextConfig
from show1_jax.models.t5 import T5Config
from show1_jax.models.vae import VAEConfig

Json = dict[str, Any]

MAX_SIZE = 2**20  # of a layer or a vocabulary; far larger than any real one
MAX_LAYERS = 1000


def size(fields: Fields, key: str, default: int, maximum: int = MAX_SIZE) -> int:
    """Reads a positive whole number.

    Raises:
      InputError: if the file holds anything else.
    """
    return positive(fields, key, fields.take(key, default), maximum)


def sizes(fields: Fields, key: str, default: list[int]) -> tuple[int, ...]:
    """Reads a list of positive whole numbers that is not empty.

    Raises:
      InputError: if the file holds anything else.
    """
    values = fields.take(key, default)
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"{fields.where}: {key} is {values!r}, but must be a list of numbers")
    return tuple(positive(fields, key, value) for value in values)


def positive(fields: Fields, key: str, value: Any, maximum: int = MAX_SIZE) -> int:
    """Checks that the value of `key` is a positive whole number.

    Raises:
      InputError: if it is not, or exceeds `maximum`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InputError(f"{fields.where}: {key} is {value!r}, but must be a positive whole number")
    if value > maximum:
        raise InputError(f"{fields.where}: {key} is {value!r:.40}, but must be at most {maximum}")
    return value


def number(
    fields: Fields, key: str, default: float, minimum: float = -1e30, maximum: float = 1e30
) -> float:
    """Reads a number, whole or not, from `minimum` to `maximum`.

    Raises:
      InputError: if the file holds anything else.
    """
    value = fields.take(key, default)
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not minimum <= value <= maximum:  # true for NaN
        raise InputError(
            f"{fields.where}: {key} is {value!r:.40}, but must be a number within range"
        )
    return float(value)


def check_groups(where: str, groups: int, channels: Sequence[int]) -> None:
    """Raises InputError unless the groups of normalisation divide every level's channels."""
    if any(width % groups for width in channels):
        raise InputError(
            f"{where}: norm_num_groups {groups} does not divide block_out_channels {list(channels)}"
        )


def vae_config(json: Mapping[str, Any], where: str) -> VAEConfig:
    """Reads the configuration of a diffusers `AutoencoderKL`.

    Args:
      json: the parsed `config.json`.
      where: its name in error messages.

    Raises:
      InputError: if a key is unknown, or a value is not implemented.
    """
    if (name := json.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise InputError(f"{where}: _class_name is {name!r}, but must be 'AutoencoderKL'")
    fields = Fields(json, where)
    channels = sizes(fields, "block_out_channels", [64])
    config = VAEConfig(
        in_channels=size(fields, "in_channels", 3),
        out_channels=size(fields, "out_channels", 3),
        latent_channels=size(fields, "latent_channels", 4),
        channels=channels,
        layers_per_block=size(fields, "layers_per_block", 1, MAX_LAYERS),
        norm_groups=size(fields, "norm_num_groups", 32),
        scaling_factor=number(fields, "scaling_factor", 0.18215),
    )
    for key, block in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        blocks = fields.take(key, [block])
        if not isinstance(blocks, list | tuple) or list(blocks) != [block] * len(channels):
            raise InputError(
                f"{where}: {key} is {blocks!r}; only {block}, once per level, is implemented"
            )
    fields.expect(
        act_fn=("silu", "swish"),
        use_quant_conv=True,
        use_post_quant_conv=True,
        mid_block_add_attention=True,
        shift_factor=None,
        latents_mean=None,
        latents_std=None,
    )
    # These are the size of training images, and a hint for pipelines that compute in fp16.
    fields.ignore("sample_size", "force_upcast")
    fields.done()
    check_groups(where, config.norm_groups, channels)
    return config


def vae_json(config: VAEConfig) -> Json:
    """Returns the diffusers configuration of an autoencoder, which `vae_config` reads.

    Raises:
      InputError: if the configuration cannot express the autoencoder.
    """
    levels = len(config.channels)
    json = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.19.3",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": 512,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    if vae_config(json, "config.translation.vae") != config:
        raise InputError("no released class can express this autoencoder's settings")
    return json


def t5_config(json: Mapping[str, Any], where: str) -> T5Config:
    """Reads the transformers configuration of a T5, and returns that of its encoder.

    Args:
      json: the parsed `config.json`.
      where: its name in error messages.

    Raises:
      InputError: if it is not a T5 of version 1.1 (gated GELU).
    """
    fields = Fields(json, where)
    fields.expect(model_type="t5", dense_act_fn="gelu_new", is_gated_act=True)
    # Without this key, transformers uses the feed-forward of the first T5.
    fields.choice("feed_forward_proj", "relu", ("gated-gelu",))
    config = T5Config(
        vocab_size=size(fields, "vocab_size", 32128),
        d_model=size(fields, "d_model", 512),
        d_kv=size(fields, "d_kv", 64),
        d_ff=size(fields, "d_ff", 2048),
        num_layers=size(fields, "num_layers", 6, MAX_LAYERS),
        num_heads=size(fields, "num_heads", 8),
        relative_buckets=size(fields, "relative_attention_num_buckets", 32),
        max_distance=size(fields, "relative_attention_max_distance", 128),
        eps=number(fields, "layer_norm_epsilon", 1e-6),
    )
    exact = config.relative_buckets // 4
    if exact < 1 or config.max_distance <= exact:
        raise InputError(
            f"{where}: relative_attention_num_buckets is {config.relative_buckets}, which does not"
            f" fit relative_attention_max_distance {config.max_distance}"
        )
    return config


def t5_json(config: T5Config) -> Json:
    """Returns the transformers configuration of a T5 encoder, which `t5_config` reads."""
    return {
        "architectures": ["T5EncoderModel"],
        "d_ff": config.d_ff,
        "d_kv": config.d_kv,
        "d_model": config.d_model,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": config.eps,
        "model_type": "t5",
        "num_decoder_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.max_distance,
        "relative_attention_num_buckets": config.relative_buckets,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def clip_config(json: Mapping[str, Any], where: str) -> CLIPTextConfig:
    """Reads the transformers configuration of a `CLIPTextModel`.

    Args:
      json: the parsed `config.json`.
      where: its name in error messages.

    Raises:
      InputError: if it is not a CLIP text encoder, or its activation is not implemented.
    """
    fields = Fields(json, where)
    fields.expect(model_type="clip_text_model")
    config = CLIPTextConfig(
        vocab_size=size(fields, "vocab_size", 49408),
        width=size(fields, "hidden_size", 512),
        ff_width=size(fields, "intermediate_size", 2048),
        num_layers=size(fields, "num_hidden_layers", 12, MAX_LAYERS),
        num_heads=size(fields, "num_attention_heads", 8),
        max_length=size(fields, "max_position_embeddings", 77),
        activation=fields.choice("hidden_act", "quick_gelu", tuple(ACTIVATIONS)),
        eps=number(fields, "layer_norm_eps", 1e-5),
        use_attention_mask=bool(fields.choice("use_attention_mask", False, (False, True))),
    )
    if config.width % config.num_heads:
        raise InputError(
            f"{where}: num_attention_heads {config.num_heads} does not divide"
            f" hidden_size {config.width}"
        )
    return config


def clip_json(config: CLIPTextConfig) -> Json:
    """Returns the transformers configuration of a CLIP encoder, which `clip_config` reads."""
    json = {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.ff_width,
        "layer_norm_eps": config.eps,
        "max_position_embeddings": config.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": 1,
        "projection_dim": 512,
        "vocab_size": config.vocab_size,
    }
    return json | ({"use_attention_mask": True} if config.use_attention_mask else {})
