"""The tiny cascade at half of the released size, with keyframes of 32x20: being trained.

    python train.py --config configs/tiny32.py --workdir runs/tiny32

trains it from nothing. It takes the place of `configs/tiny.py` when its checkpoint is there.
"""

from typing import Any

from ml_collections import ConfigDict

from show1_jax.configs import tiny

PIXEL = {
    "channels": (32, 32, 96),
    "layers": (1, 1, 1),
    # Of 160 pixels and more it costs a CPU more than all convolutions.
    "attention": (False, False, True),
    "attention_head_dim": (16, 16, 16),
}
SMALL = PIXEL | {"channels": (32, 32, 64), "attention_head_dim": (8, 8, 8)}
UPSCALER = tiny.UPSCALER | {"channels": (32, 32, 32, 64), "attention_head_dim": (8, 8, 8, 8)}


def get_config(stage: str = "") -> ConfigDict:
    """The tiny cascade; `stage` is the part to train, "" for all in order."""
    config = tiny.get_config(stage)
    config.checkpoint = ""
    sections: dict[str, dict[str, Any]] = {
        "keyframes": {"unet": tiny.unet(**PIXEL), "height": 20, "width": 32},
        "interpolation": {"unet": tiny.unet(in_channels=7, **SMALL)},
        "first_frame": {"unet": tiny.unet(**UPSCALER, temporal=False, temporal_heads="width")},
        "super_resolution": {"unet": tiny.unet(**UPSCALER), "height": 80, "width": 128},
        "translation": {"height": 160, "width": 288},
    }
    for name, section in sections.items():
        config[name] = ConfigDict(config[name].to_dict() | section)
    parts: dict[str, dict[str, Any]] = {
        "vae": {"height": 160, "width": 288, "batch_size": 4},
        "image": {"steps": 12_000},
        "keyframes": {"steps": 8_000, "batch_size": 8},
        "first_frame": {"batch_size": 4},
        "super_resolution": {"batch_size": 1},
        "translation": {"batch_size": 1},
    }
    for name, section in parts.items():
        config.train[name].update(section)
    config.train.image.objective.update(timesteps=(0, 1000), shift=3.0)
    return config
