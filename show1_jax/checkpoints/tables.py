"""The key table of each network. The names on the right are those of `models/`."""

import numpy as np

from show1_jax.checkpoints.keys import (
    CONV_FRAMES,
    NORM,
    SAME,
    KeyTable,
    Row,
    conv,
    dense,
    same_names,
    under,
)

# --- blocks that several networks share -------------------------------------

RESNET: list[Row] = [
    *same_names("norm1 norm2", NORM),
    *same_names("conv1 conv2 conv_shortcut", conv()),
    *same_names("time_emb_proj", dense()),
]

# --- denoisers ---------------------------------------------------------------

TEMPORAL_CONV: list[Row] = [
    row
    # From the second one on, PyTorch's index of the convolution counts a dropout layer.
    for i, last in ((1, 2), (2, 3), (3, 3), (4, 3))
    for row in [
        *under(f"conv{i}.0", f"norm{i}", NORM),
        *under(f"conv{i}.{last}", f"conv{i}", conv(CONV_FRAMES)),
    ]
]

TRANSFORMER: list[Row] = [
    *same_names("norm", NORM),
    *same_names("proj_in proj_out", dense()),
    *under(
        "transformer_blocks.{}",
        "block_{}",
        [
            *same_names("norm1 norm2 norm3", NORM),
            *(
                row
                for attention in ("attn1", "attn2")
                for row in under(
                    attention,
                    attention,
                    [
                        *same_names("to_q to_k to_v", dense(bias=False)),
                        *under("to_out.0", "to_out", dense()),
                    ],
                )
            ),
            *under("ff.net.0.proj", "ff_in", dense()),
            *under("ff.net.2", "ff_out", dense()),
        ],
    ),
]

ADDED_KV_ATTENTION: list[Row] = [
    *same_names("group_norm norm_cross", NORM),
    *same_names("to_q to_k to_v add_k_proj add_v_proj", dense()),
    *under("to_out.0", "to_out", dense()),
]

LEVEL: list[Row] = [
    *under("resnets.{}", "resnet_{}", RESNET),
    *under("temp_convs.{}", "temporal_conv_{}", TEMPORAL_CONV),
    *under("attentions.{}", "attention_{}", ADDED_KV_ATTENTION),
    *under("attentions.{}", "attention_{}", TRANSFORMER),
    *under("temp_attentions.{}", "temporal_attention_{}", TRANSFORMER),
    *under("downsamplers.0", "downsample", RESNET),
    *under("downsamplers.0.conv", "downsample", conv()),
    *under("upsamplers.0", "upsample", RESNET),
    *under("upsamplers.0.conv", "upsample", conv()),
]

UNET = KeyTable(
    [
        *same_names("conv_in conv_out", conv()),
        *same_names("conv_norm_out", NORM),
        *under("time_embedding.linear_1", "time_embedding/linear_1", dense()),
        *under("time_embedding.linear_2", "time_embedding/linear_2", dense()),
        *under("class_embedding.linear_1", "noise_level_embedding/linear_1", dense()),
        *under("class_embedding.linear_2", "noise_level_embedding/linear_2", dense()),
        *under("encoder_hid_proj", "text_projection", dense()),
        *under(
            "add_embedding",
            "text_pooling",
            [
                *same_names("norm1 norm2", NORM),
                *same_names("proj", dense()),
                *under("pool.q_proj", "to_q", dense()),
                *under("pool.k_proj", "to_k", dense()),
                *under("pool.v_proj", "to_v", dense()),
                ("pool.positional_embedding", "positional_embedding", SAME),
            ],
        ),
        *under("transformer_in", "input_transformer", TRANSFORMER),
        *under("down_blocks.{}", "down_{}", LEVEL),
        *under("mid_block", "mid", LEVEL),
        *under("up_blocks.{}", "up_{}", LEVEL),
    ]
)

# --- the latent stage's autoencoder ------------------------------------------

VAE_MIDDLE: list[Row] = [
    *under("resnets.{}", "resnet_{}", RESNET),
    *under(
        "attentions.0",
        "attention_0",
        [
            *same_names("group_norm", NORM),
            *same_names("to_q to_k to_v", dense()),
            *under("to_out.0", "to_out", dense()),
            # The names in checkpoints from before diffusers 0.15.
            *under("query", "to_q", dense()),
            *under("key", "to_k", dense()),
            *under("value", "to_v", dense()),
            *under("proj_attn", "to_out", dense()),
        ],
    ),
]

VAE_HALF: list[Row] = [
    *same_names("conv_in conv_out", conv()),
    *same_names("conv_norm_out", NORM),
    *under("mid_block", "mid", VAE_MIDDLE),
    *under("down_blocks.{}.resnets.{}", "down_{}/resnet_{}", RESNET),
    *under("down_blocks.{}.downsamplers.0.conv", "down_{}/downsample", conv()),
    *under("up_blocks.{}.resnets.{}", "up_{}/resnet_{}", RESNET),
    *under("up_blocks.{}.upsamplers.0.conv", "up_{}/upsample", conv()),
]

VAE = KeyTable(
    [*same_names("encoder decoder", VAE_HALF), *same_names("quant_conv post_quant_conv", conv())]
)

# --- text encoders -----------------------------------------------------------

SCALE: list[Row] = [("weight", "scale", SAME)]
EMBEDDING: list[Row] = [("weight", "embedding", SAME)]

T5 = KeyTable(
    [
        # Tied: files hold the token embedding once or twice.
        *under("shared", "token_embedding", EMBEDDING),
        *under("encoder.embed_tokens", "token_embedding", EMBEDDING),
        *under(
            # All blocks share this; PyTorch stores it in the first one.
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            "relative_bias",
            EMBEDDING,
        ),
        *under("encoder.final_layer_norm", "final_norm", SCALE),
        *under(
            "encoder.block.{}",
            "block_{}",
            [
                *under("layer.0.layer_norm", "norm1", SCALE),
                *under("layer.0.SelfAttention.q", "attention/to_q", dense(bias=False)),
                *under("layer.0.SelfAttention.k", "attention/to_k", dense(bias=False)),
                *under("layer.0.SelfAttention.v", "attention/to_v", dense(bias=False)),
                *under("layer.0.SelfAttention.o", "attention/to_out", dense(bias=False)),
                *under("layer.1.layer_norm", "norm2", SCALE),
                *under("layer.1.DenseReluDense.wi_0", "ff_gate", dense(bias=False)),
                *under("layer.1.DenseReluDense.wi_1", "ff_in", dense(bias=False)),
                *under("layer.1.DenseReluDense.wo", "ff_out", dense(bias=False)),
            ],
        ),
    ],
    tied=("shared.weight", "encoder.embed_tokens.weight"),
)

CLIP = KeyTable(
    [
        *under("text_model.embeddings.token_embedding", "token_embedding", EMBEDDING),
        *under("text_model.embeddings.position_embedding", "position_embedding", EMBEDDING),
        *under("text_model.final_layer_norm", "final_norm", NORM),
        *under(
            "text_model.encoder.layers.{}",
            "block_{}",
            [
                *under("layer_norm1", "norm1", NORM),
                *under("self_attn.q_proj", "attention/to_q", dense()),
                *under("self_attn.k_proj", "attention/to_k", dense()),
                *under("self_attn.v_proj", "attention/to_v", dense()),
                *under("self_attn.out_proj", "attention/to_out", dense()),
                *under("layer_norm2", "norm2", NORM),
                *under("mlp.fc1", "ff_in", dense()),
                *under("mlp.fc2", "ff_out", dense()),
            ],
        ),
    ],
    # transformers before 4.31 stored the positions 0, 1, 2, ... too.
    buffers={
        "text_model.embeddings.position_ids": lambda shape: np.broadcast_to(
            np.arange(shape[-1]), shape
        )
    },
)
