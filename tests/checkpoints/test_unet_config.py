"""The denoisers' configurations, read from the released files and written again."""

import dataclasses
import json

import pytest

from show1_jax.checkpoints.network_config import Json
from show1_jax.checkpoints.unet_config import unet_config, unet_json
from show1_jax.errors import InputError
from show1_jax.models.unet import UNetConfig
from tests.conftest import GOLDENS, RELEASE

RELEASED = sorted(str(path.parent.relative_to(RELEASE)) for path in RELEASE.glob("*/unet/*.json"))
RECORDED = sorted(path.name for path in GOLDENS.glob("unet*"))


def released(name: str) -> Json:
    return json.loads((RELEASE / name / "config.json").read_text())


def recorded(name: str) -> Json:
    return json.loads((GOLDENS / name / "config.json").read_text())


PIXEL = released("show-1-base/unet")
LATENT = released("show-1-sr2/unet")
IMAGE = released("IF-II-L-v1.0/unet")
DIFFUSERS = recorded("unet3d_sr2")


@pytest.mark.parametrize(
    "config",
    [*map(released, RELEASED), *map(recorded, RECORDED)],
    ids=[*RELEASED, *RECORDED],
)
def test_what_is_written_is_read_back(config):
    read = unet_config(config, "x")
    written = json.loads(json.dumps(unet_json(read)))
    assert unet_config(written, "x") == read
    # Nor does it differ where both files have a key, but in keys without a meaning.
    ignored = {"_diffusers_version", "_name_or_path", "sample_size", "use_linear_projection"}
    meaningless = {"addition_embed_type_num_heads"} if read.text_pooling_heads is None else set()
    for key in written.keys() & config.keys() - ignored - meaningless:
        if key == "time_embedding_dim":
            assert written[key] == config[key] or config[key] is None
        else:
            assert written[key] == config[key], key


def test_all_kinds_of_denoisers_are_tried():
    assert len(RELEASED) == 5
    assert len(RECORDED) == 6


def test_reads_the_keyframe_denoiser():
    assert unet_config(PIXEL, "x") == UNetConfig(
        in_channels=3,
        out_channels=6,
        channels=(32, 64, 32, 32),
        layers=(1, 1, 1, 1),
        attention=(False, True, True, True),
        attention_head_dim=(8, 8, 8, 8),
        spatial_heads="width",
        temporal_heads="number",
        space="pixel",
        text_dim=32,
        time_embed_dim=128,
        text_projection_dim=64,
        text_pooling_heads=4,
        activation="gelu",
        scale_shift=True,
        norm_groups=8,
    )


def test_reads_the_image_denoiser():
    config = unet_config(IMAGE, "x")
    assert not config.temporal
    assert config.noise_level
    assert config.skip_time_activation
    assert config.time_embedding_activation == "gelu"
    assert config.output_scale == config.mid_output_scale == 1.4142271248762552
    assert config.layers == (1, 1, 1, 2, 2)
    assert config.attention == (False, False, False, True, True)
    assert config.size_multiple == 16


@pytest.mark.parametrize(
    ("json", "spatial", "temporal", "head_dim", "input_transformer"),
    [
        (PIXEL, "width", "number", (8, 8, 8, 8), None),
        (PIXEL | {"attention_head_dim": [8, 4, 4, 8]}, "width", "number", (8, 4, 4, 8), None),
        (LATENT, "number", "number", (2, 4, 8), 64),
        (LATENT | {"transfromer_in_opt": False}, "number", "number", (2, 4, 8), None),
        (DIFFUSERS, "width", "width", (8, 8, 8, 8), 8),
        (DIFFUSERS | {"attention_head_dim": 16}, "width", "width", (16,) * 4, 16),
        (IMAGE, "width", "width", (8,) * 5, None),
    ],
    ids=["show1 pixel", "levels", "show1 latent", "no input", "diffusers", "wider", "image"],
)
def test_each_class_reads_the_head_dimension_its_own_way(
    json, spatial, temporal, head_dim, input_transformer
):
    config = unet_config(json, "x")
    assert config.spatial_heads == spatial
    assert config.temporal_heads == temporal
    assert config.attention_head_dim == head_dim
    assert config.input_transformer_head_dim == input_transformer


def test_the_misspelt_key_tells_the_two_classes_of_one_name_apart():
    assert PIXEL["_class_name"] == LATENT["_class_name"] == DIFFUSERS["_class_name"]
    assert "transfromer_in_opt" not in DIFFUSERS
    unmarked = {k: v for k, v in LATENT.items() if k != "transfromer_in_opt"}
    # Diffusers' own class takes one number for all levels.
    with pytest.raises(InputError, match="attention_head_dim is a list, but must be one"):
        unet_config(unmarked, "x")
    config = unet_config(unmarked | {"attention_head_dim": 8}, "x")
    assert (config.spatial_heads, config.temporal_heads) == ("width", "width")
    assert config.input_transformer_head_dim == 8


def test_defaults_are_those_of_diffusers():
    config = unet_config({"_class_name": "UNet3DConditionModel"}, "x")
    assert config.channels == (320, 640, 1280, 1280)
    assert config.layers == (2, 2, 2, 2)
    assert config.attention == (True, True, True, False)
    assert config.attention_head_dim == (64,) * 4
    assert (config.text_dim, config.time_embed_dim) == (1024, 1280)
    assert (config.norm_groups, config.norm_eps) == (32, 1e-5)
    assert config.input_transformer_head_dim == 64


def test_a_scale_of_null_is_none():
    null = {"mid_block_scale_factor": None, "resnet_out_scale_factor": None}
    assert unet_config(PIXEL | null, "x") == unet_config(PIXEL, "x")
    assert unet_config(LATENT | null, "x") == unet_config(LATENT, "x")


def test_keys_without_a_meaning_are_ignored():
    without = {"sample_size": 1, "_name_or_path": "somewhere", "_diffusers_version": "9"}
    assert unet_config(PIXEL | without, "x") == unet_config(PIXEL, "x")


@pytest.mark.parametrize(
    ("json", "change", "message"),
    [
        (PIXEL, {"novelty": 1}, r"unknown configuration key\(s\) novelty"),
        (PIXEL, {"_class_name": "Transformer2DModel"}, "Transformer2DModel is not a denoiser"),
        (PIXEL, {"center_input_sample": True}, "center_input_sample is True"),
        (PIXEL, {"class_embeddings_concat": True}, "class_embeddings_concat is True"),
        (PIXEL, {"conv_in_kernel": 5}, "conv_in_kernel is 5"),
        (PIXEL, {"conv_out_kernel": 1}, "conv_out_kernel is 1"),
        (PIXEL, {"cross_attention_norm": None}, "cross_attention_norm is None"),
        (LATENT, {"cross_attention_norm": "group_norm"}, "cross_attention_norm is 'group_norm'"),
        (PIXEL, {"downsample_padding": 0}, "downsample_padding is 0"),
        (PIXEL, {"dual_cross_attention": True}, "dual_cross_attention is True"),
        (PIXEL, {"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type is 'image_proj'"),
        (LATENT, {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type is 'text_proj'"),
        (PIXEL, {"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        (PIXEL, {"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        (PIXEL, {"flip_sin_to_cos": False}, "flip_sin_to_cos is False"),
        (PIXEL, {"freq_shift": 1}, "freq_shift is 1"),
        (PIXEL, {"mid_block_only_cross_attention": True}, "mid_block_only_cross_attention is True"),
        (PIXEL, {"num_attention_heads": 8}, "num_attention_heads is 8"),
        (PIXEL, {"only_cross_attention": True}, "only_cross_attention is True"),
        (PIXEL, {"time_cond_proj_dim": 64}, "time_cond_proj_dim is 64"),
        (PIXEL, {"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        (PIXEL, {"timestep_post_act": "silu"}, "timestep_post_act is 'silu'"),
        (PIXEL, {"transformer_layers_per_block": 2}, "transformer_layers_per_block is 2"),
        (PIXEL, {"upcast_attention": True}, "upcast_attention is True"),
        (PIXEL, {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        (PIXEL, {"act_fn": "mish"}, "act_fn is 'mish'"),
        (PIXEL, {"time_embedding_act_fn": "mish"}, "time_embedding_act_fn is 'mish'"),
        (PIXEL, {"num_class_embeds": 10}, "num_class_embeds is 10"),
        (PIXEL, {"mid_block_type": "UNetMidBlock3DCrossAttn"}, "pixel and latent .* mixed"),
        (PIXEL, {"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type is 'UNetMidBlock2D"),
        (PIXEL, {"up_block_types": PIXEL["down_block_types"]}, "up_block_types has Resnet"),
        (PIXEL, {"up_block_types": PIXEL["up_block_types"][::-1]}, "do not mirror"),
        (PIXEL, {"down_block_types": ["AttnDownBlock3D"] * 4}, "down_block_types has AttnDown"),
        (
            PIXEL,
            {"block_out_channels": [32, 64, 32]},
            "4 down_block_types for 3 block_out_channels",
        ),
        (PIXEL, {"layers_per_block": [1, 2]}, "layers_per_block has 2 numbers for 4 levels"),
        (PIXEL, {"attention_head_dim": [8, 8]}, "attention_head_dim has 2 numbers for 4 levels"),
        (PIXEL, {"block_out_channels": 32}, "block_out_channels is 32"),
        (PIXEL, {"block_out_channels": [32, "a", 32, 32]}, "block_out_channels is 'a'"),
        (PIXEL, {"in_channels": None}, "in_channels is None"),
        (PIXEL, {"in_channels": "3"}, "in_channels is '3'"),
        (PIXEL, {"out_channels": 0}, "out_channels is 0"),
        (PIXEL, {"norm_num_groups": None}, "norm_num_groups is None"),
        (PIXEL, {"norm_num_groups": 5}, "norm_num_groups 5 does not divide"),
        (PIXEL, {"norm_eps": "small"}, "norm_eps is 'small'"),
        (PIXEL, {"resnet_out_scale_factor": "a"}, "resnet_out_scale_factor is 'a'"),
        (PIXEL, {"cross_attention_dim": [64]}, "cross_attention_dim is .64"),
        (PIXEL, {"encoder_hid_dim": "a"}, "encoder_hid_dim is 'a'"),
        (PIXEL, {"time_embedding_dim": "a"}, "time_embedding_dim is 'a'"),
        (PIXEL, {"addition_embed_type_num_heads": None}, "addition_embed_type_num_heads is None"),
        (PIXEL, {"layers_per_block": "a"}, "layers_per_block is 'a'"),
        (PIXEL, {"layers_per_block": 0}, "layers_per_block is 0"),
        (PIXEL, {"attention_head_dim": None}, "attention_head_dim is None"),
        (PIXEL, {"down_block_types": 3}, "down_block_types is 3"),
        (PIXEL, {"act_fn": ["gelu"]}, "act_fn is .'gelu'"),
        (
            DIFFUSERS,
            {"attention_head_dim": [8] * 4},
            "attention_head_dim is a list, but must be one",
        ),
        (
            IMAGE,
            {
                "block_out_channels": [32],
                "layers_per_block": 1,
                "down_block_types": ["CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D"],
                "mid_block_type": "UNetMidBlock2DCrossAttn",
            },
            "image denoisers in latent space",
        ),
    ],
)
def test_what_is_not_implemented_is_refused(json, change, message):
    with pytest.raises(InputError, match=message) as error:
        unet_config(json | change, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"norm_eps": 1e-5, "spatial_heads": "number"},
        {"input_transformer_head_dim": 32},
        {"space": "latent"},
    ],
)
def test_what_no_pytorch_class_expresses_is_not_written(change):
    config = dataclasses.replace(unet_config(PIXEL, "x"), **change)
    with pytest.raises(InputError):
        unet_json(config)
