"""Converts the released `unet/config.json` to `UNetConfig` and back.

It reads three PyTorch classes: Show-1's UNet3DConditionModel (recognised by its key
`transfromer_in_opt`, which is spelled like this), diffusers' class of the same name (ModelScope,
Zeroscope), and diffusers' UNet2DConditionModel (DeepFloyd IF).
"""

from collections.abc import Mapping
from typing import Any

from show1_jax.checkpoints.fields import Fields
from show1_jax.checkpoints.network_config import (
    MAX_LAYERS,
    MAX_SIZE,
    check_groups,
    number,
    positive,
    size,
    sizes,
)
from show1_jax.errors import InputError
from show1_jax.models.unet import UNetConfig

# (pixel or latent, with attention) of each block class, without its "2D" or "3D".
DOWN_BLOCKS = {
    "ResnetDownsampleBlock": ("pixel", False),
    "SimpleCrossAttnDownBlock": ("pixel", True),
    "DownBlock": ("latent", False),
    "CrossAttnDownBlock": ("latent", True),
}
UP_BLOCKS = {
    "ResnetUpsampleBlock": ("pixel", False),
    "SimpleCrossAttnUpBlock": ("pixel", True),
    "UpBlock": ("latent", False),
    "CrossAttnUpBlock": ("latent", True),
}
MID_BLOCKS = {"SimpleCrossAttn": "pixel", "CrossAttn": "latent"}


def unet_config(config: Mapping[str, Any], where: str) -> UNetConfig:
    """Reads a denoiser's `config.json`.

    Args:
      config: the parsed JSON.
      where: its name in error messages.

    Raises:
      InputError: if a key is unknown, or a value is one that no released network has.
    """
    fields = Fields(config, where)
    fields.null_is_default("resnet_out_scale_factor", "mid_block_scale_factor")
    show1 = "transfromer_in_opt" in config
    class_name = config.get("_class_name", "UNet3DConditionModel")
    if class_name not in ("UNet3DConditionModel", "UNet2DConditionModel"):
        raise InputError(f"{where}: {class_name} is not a denoiser class of the cascade")
    temporal = class_name == "UNet3DConditionModel"
    diffusers_3d = temporal and not show1
    dimensions = "3D" if temporal else "2D"

    channels = sizes(fields, "block_out_channels", [320, 640, 1280, 1280])
    levels = len(channels)
    space, attention = _blocks(fields, dimensions, levels)
    if not temporal and space == "latent":
        raise InputError(f"{where}: the cascade has no image denoisers in latent space")
    latent = space == "latent"
    head_dim = _per_level(fields, "attention_head_dim", 64 if diffusers_3d else 8, levels)
    if diffusers_3d and isinstance(config.get("attention_head_dim"), list):
        raise InputError(
            f"{where}: attention_head_dim is a list, but must be one number for this class"
        )

    text_width = size(fields, "cross_attention_dim", 1024 if diffusers_3d else 1280)
    hidden = _optional(fields, "encoder_hid_dim")
    fields.expect(encoder_hid_dim_type=(None, "text_proj") if hidden else None)
    pooled = fields.choice("addition_embed_type", None, (None, "text")) == "text"
    heads = size(fields, "addition_embed_type_num_heads", 64)
    noise_level = fields.choice("class_embed_type", None, (None, "timestep")) == "timestep"
    time_width = _optional(fields, "time_embedding_dim") or 4 * channels[0]
    input_transformer = True if diffusers_3d else bool(fields.take("transfromer_in_opt", False))

    result = UNetConfig(
        in_channels=size(fields, "in_channels", 4),
        out_channels=size(fields, "out_channels", 4),
        channels=channels,
        layers=_per_level(fields, "layers_per_block", 2, levels, MAX_LAYERS),
        attention=attention,
        attention_head_dim=head_dim,
        spatial_heads="number" if show1 and latent else "width",
        temporal_heads="number" if show1 else "width",
        space=space,
        temporal=temporal,
        # 64 in Show-1. In diffusers' class, the width of the other heads.
        input_transformer_head_dim=(head_dim[0] if diffusers_3d else 64)
        if input_transformer
        else None,
        text_dim=hidden or text_width,
        text_projection_dim=text_width if hidden else None,
        text_pooling_heads=heads if pooled else None,
        noise_level=noise_level,
        time_embed_dim=time_width,
        activation=fields.choice("act_fn", "silu", ("silu", "swish", "gelu")),
        time_embedding_activation=fields.choice(
            "time_embedding_act_fn", None, (None, "silu", "gelu")
        ),
        skip_time_activation=bool(fields.take("resnet_skip_time_act", False)),
        scale_shift=fields.choice("resnet_time_scale_shift", "default", ("default", "scale_shift"))
        == "scale_shift",
        # The latent blocks never receive the first of these two.
        output_scale=1.0 if latent else number(fields, "resnet_out_scale_factor", 1.0),
        mid_output_scale=number(fields, "mid_block_scale_factor", 1.0),
        norm_groups=size(fields, "norm_num_groups", 32),
        norm_eps=number(fields, "norm_eps", 1e-5),
    )
    _expect_the_rest(fields, latent)
    check_groups(where, result.norm_groups, channels)
    return result


def unet_json(config: UNetConfig) -> dict[str, Any]:
    """Returns the `config.json` from which PyTorch and `unet_config` build the same network.

    Raises:
      InputError: if no PyTorch class has this combination of settings.
    """
    pixel = config.space == "pixel"
    show1 = config.temporal and config.temporal_heads == "number"
    dimensions = "3D" if config.temporal else "2D"

    def blocks(table: dict[str, tuple[str, bool]]) -> list[str]:
        names = {value: f"{name}{dimensions}" for name, value in table.items()}
        return [names[config.space, attention] for attention in config.attention]

    mid = "SimpleCrossAttn" if pixel else "CrossAttn"
    result: dict[str, Any] = {
        "_class_name": f"UNet{dimensions}ConditionModel",
        "_diffusers_version": "0.19.3",
        "act_fn": config.activation,
        "attention_head_dim": _shortest(config.attention_head_dim),
        "block_out_channels": list(config.channels),
        "cross_attention_dim": config.text_projection_dim or config.text_dim,
        "down_block_types": blocks(DOWN_BLOCKS),
        "in_channels": config.in_channels,
        "layers_per_block": _shortest(config.layers),
        "mid_block_scale_factor": config.mid_output_scale,
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "up_block_types": blocks(UP_BLOCKS)[::-1],
    }
    if show1 or not config.temporal:
        result |= {
            "addition_embed_type": "text" if config.text_pooling_heads else None,
            "addition_embed_type_num_heads": config.text_pooling_heads or 64,
            "class_embed_type": "timestep" if config.noise_level else None,
            "cross_attention_norm": "group_norm" if pixel else None,
            "encoder_hid_dim": config.text_dim if config.text_projection_dim else None,
            "encoder_hid_dim_type": "text_proj" if config.text_projection_dim else None,
            "mid_block_type": f"UNetMidBlock{dimensions}{mid}",
            "resnet_out_scale_factor": config.output_scale,
            "resnet_skip_time_act": config.skip_time_activation,
            "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
            "time_embedding_act_fn": config.time_embedding_activation,
            "time_embedding_dim": config.time_embed_dim,
            "use_linear_projection": not pixel,
        }
    if show1:
        result["transfromer_in_opt"] = config.input_transformer_head_dim is not None
    if unet_config(result, "the config's unet") != config:
        raise InputError("no released PyTorch class can express this denoiser's settings")
    return result


def _expect_the_rest(fields: Fields, latent: bool) -> None:
    """Raises InputError for values that no released network has, and for unknown keys."""
    fields.expect(
        center_input_sample=False,
        class_embeddings_concat=False,
        conv_in_kernel=3,
        conv_out_kernel=3,
        cross_attention_norm=None if latent else "group_norm",
        downsample_padding=1,
        dual_cross_attention=False,
        flip_sin_to_cos=True,
        freq_shift=0,
        mid_block_only_cross_attention=(None, False),
        num_attention_heads=None,
        only_cross_attention=False,
        time_cond_proj_dim=None,
        time_embedding_type="positional",
        timestep_post_act=None,
        transformer_layers_per_block=1,
        upcast_attention=False,
        addition_time_embed_dim=None,
        num_class_embeds=None,
        projection_class_embeddings_input_dim=None,
        resnet_out_scale_factor=1.0,
        # Newer releases of diffusers write these.
        attention_type="default",
        dropout=0.0,
        reverse_transformer_layers_per_block=None,
    )
    # This changes nothing: latent 3D blocks always project linearly, pixel blocks never project.
    fields.ignore("sample_size", "use_linear_projection")
    fields.done()


def _blocks(fields: Fields, dimensions: str, levels: int) -> tuple[Any, tuple[bool, ...]]:
    """Reads the block types. The way up must mirror the way down."""
    cross = [f"CrossAttnDownBlock{dimensions}"] * 3 + [f"DownBlock{dimensions}"]
    default_up = [f"UpBlock{dimensions}"] + [f"CrossAttnUpBlock{dimensions}"] * 3

    def look_up(key: str, default: list[str], table: dict[str, tuple[str, bool]]) -> list[Any]:
        known = {f"{name}{dimensions}": value for name, value in table.items()}
        names = fields.take(key, default)
        if not isinstance(names, list | tuple):
            raise InputError(f"{fields.where}: {key} is {names!r}, but must be a list of blocks")
        for name in names:
            if name not in tuple(known):
                raise InputError(
                    f"{fields.where}: {key} has {name}, which is not one of {', '.join(known)}"
                )
        return [known[name] for name in names]

    down = look_up("down_block_types", cross, DOWN_BLOCKS)
    up = look_up("up_block_types", default_up, UP_BLOCKS)
    mids = {f"UNetMidBlock{dimensions}{kind}": space for kind, space in MID_BLOCKS.items()}
    mid = mids[fields.choice("mid_block_type", f"UNetMidBlock{dimensions}CrossAttn", tuple(mids))]
    if len(down) != levels:
        raise InputError(
            f"{fields.where}: there are {len(down)} down_block_types for {levels} "
            "block_out_channels"
        )
    if down != up[::-1]:
        raise InputError(f"{fields.where}: up_block_types do not mirror down_block_types")
    if {space for space, _ in down} != {mid}:
        raise InputError(f"{fields.where}: blocks of pixel and latent networks cannot be mixed")
    return mid, tuple(attention for _, attention in down)


def _per_level(
    fields: Fields, key: str, default: int, levels: int, maximum: int = MAX_SIZE
) -> tuple[int, ...]:
    """Reads one number per level, or one number for all levels."""
    value = fields.take(key, default)
    if not isinstance(value, list | tuple):
        return (positive(fields, key, value, maximum),) * levels
    if len(value) != levels:
        raise InputError(f"{fields.where}: {key} has {len(value)} numbers for {levels} levels")
    return tuple(positive(fields, key, each, maximum) for each in value)


def _shortest(values: tuple[int, ...]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


def _optional(fields: Fields, key: str) -> int | None:
    value = fields.take(key, None)
    return None if value is None else positive(fields, key, value)
