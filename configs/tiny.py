"""The whole cascade at a quarter of the released size, small enough for two CPU cores: the default.

    python sample.py --prompt "a small red circle moving left on a black background"
    python train.py --config configs/tiny.py --workdir runs/tiny

The first makes 29 frames of 144x80 in OUT/000/translation.mp4 by all five
denoisers, in under a minute on two cores; of 200 validation prompts 99 % are followed
in everything (docs/tiny.md). The second trains them anew, in some 5½ hours, on version
7.0.0 of moving shapes, which holds out more than the embedded checkpoint's training did;
how good they get by that one command has not been measured.
"""

from typing import Any

from etils.epath import Path
from ml_collections import ConfigDict

import show1_jax
from show1_jax.configs import show1

CHECKPOINT = Path(show1_jax.__file__).parent / "assets" / "tiny"
TEXT_WIDTH = 64


def unet(**changes: Any) -> dict[str, Any]:
    """What the denoisers share."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "channels": (32, 96),
        "layers": (1, 1),
        # Of 160 pixels and more it costs a CPU more than all convolutions.
        "attention": (False, True),
        "attention_head_dim": (16, 16),
        "spatial_heads": "width",
        "temporal_heads": "number",
        "space": "pixel",
        "text_dim": TEXT_WIDTH,
        "text_projection_dim": TEXT_WIDTH,
        "text_pooling_heads": 4,
        "time_embed_dim": 128,
        "activation": "silu",
        "scale_shift": True,
        "norm_groups": 8,
    } | changes


def solver(**changes: Any) -> dict[str, Any]:
    """DPM-Solver++ 2M on a network that predicts the velocity."""
    return {
        "kind": "dpm_solver",
        "prediction": "v",
        "schedule": show1.COSINE,
        "spacing": "linspace",
        "threshold": 0.995,
        "lambda_min_clipped": -5.1,
    } | changes


UPSCALER = {
    "in_channels": 6,  # the noisy frames and the upsampled ones
    "channels": (32, 32, 64, 64),
    "layers": (1, 1, 1, 1),
    "attention": (False, False, False, True),
    "attention_head_dim": (16, 16, 16, 16),
    "noise_level": True,
}


def training(**changes: Any) -> dict[str, Any]:
    """How the denoisers are trained."""
    return (
        show1.denoising(
            clips=100_000,
            steps=3_000,
            batch_size=8,
            learning_rate=1e-3,
            warmup_steps=200,
            ema_decay=0.999,
            dtype="float32",
            remat="",
            dropout=False,
            objective=show1.objective(),
            threads=2,
            save_every=200,
        )
        | changes
    )


# Of the denoisers' trainings, what the autoencoder's has too.
SHARED = ("clips", "learning_rate", "warmup_steps", "ema_decay", "dtype", "threads", "save_every")


def get_config(stage: str = "") -> ConfigDict:
    """The tiny cascade; `stage` is the part to train, "" for all in order."""
    config = show1.get_config(stage)
    config.checkpoint = str(CHECKPOINT)
    config.dtype = "float32"
    config.examples = (
        "a small red circle moving left on a black background",
        "a large blue square moving up on a white background",
        "a small green triangle moving right on a gray background",
    )
    del config.text.t5, config.text.clip
    # Captions have 23 at most. Among 77 a word would be lost to networks that attend to padding.
    config.text.t5_tokens = 24
    config.text.random = True

    sections: dict[str, dict[str, Any]] = {
        "keyframes": {
            "unet": unet(),
            "solver": solver(),
            "height": 10,
            "width": 16,
            "fps": 1.875,
            "steps": 10,
            "guidance": 2.0,
        },
        "interpolation": {
            "unet": unet(in_channels=7, channels=(32, 64)),
            "solver": solver(),
            "steps": 8,
            "guidance": 1.0,
        },
        "first_frame": {
            "unet": unet(**UPSCALER, temporal=False, temporal_heads="width"),
            "solver": solver(),
            "steps": 8,
            "guidance": 1.0,
            "noise_level": 50,
        },
        "super_resolution": {
            "unet": unet(**UPSCALER),
            "solver": solver(),
            "height": 40,
            "width": 64,
            "steps": 6,
            "guidance": 1.0,
            "noise_level": 50,
        },
        "translation": {
            "unet": unet(
                in_channels=4,
                out_channels=4,
                channels=(32, 64),
                attention_head_dim=(1, 2),
                spatial_heads="number",
                space="latent",
                text_dim=32,
                text_projection_dim=None,
                text_pooling_heads=None,
                scale_shift=False,
            ),
            "vae": {
                "channels": (16, 32, 64, 64),
                "layers_per_block": 1,
                "latent_channels": 4,
                "norm_groups": 8,
            },
            "solver": solver(threshold=None),
            "height": 80,
            "width": 144,
            "vae_frames": 4,
            "strength": 0.2,
            "negative_prompt": "",
            "steps": 20,
            "guidance": 1.0,
        },
    }
    parts = {
        "vae": show1.training(
            height=80,
            width=144,
            kl_weight=1e-6,
            gradient_weight=1.0,
            squared_weight=4.0,
            **{name: training()[name] for name in SHARED},
            batch_size=8,
            steps=4_000,
        ),
        # Small things in plain colours show through less noise: below, the text says nothing new.
        "image": training(
            batch_size=32,
            steps=10_000,
            learning_rate=2e-3,
            objective=show1.objective(timesteps=(500, 1000)),
        ),
        # The noisiest timesteps decide which way things move, those below what they look like.
        "keyframes": training(
            init="image",
            batch_size=16,
            steps=6_000,
            learning_rate=2e-3,
            objective=show1.objective(shift=3.0),
        ),
        # Not initialised from the keyframes': a smaller network does. Of noisier keyframes than
        # there are it learns to trust none of them.
        "interpolation": training(max_noise_level=8),
        "first_frame": training(max_noise_level=400),
        # Of a batch of two, faster learning unlearns what the first frame's network knew.
        "super_resolution": training(
            init="first_frame",
            max_noise_level=400,
            batch_size=2,
            steps=800,
            learning_rate=1.5e-4,
        ),
        "translation": training(
            frames=8,
            batch_size=4,
            objective=show1.objective(timesteps=(0, 900)),
        ),
    }
    for name, section in sections.items():
        config[name] = ConfigDict(config[name].to_dict() | section)
    config.train = ConfigDict(parts)
    return config
