"""The tiny cascade for square clips of two seconds or more, to be trained from nothing on emoji.

    python examples/emoji_shards.py --dir clips/emoji
    python train.py --config examples/emoji.py --workdir runs/emoji

For other clips change the dataset, the sizes and the frames a second.
"""

from typing import Any

from ml_collections import ConfigDict

from show1_jax.configs import tiny


def get_config(stage: str = "") -> ConfigDict:
    """The tiny cascade for squares; `stage` is the part to train, "" for all in order."""
    config = tiny.get_config(stage)
    config.checkpoint = ""
    config.examples = ("an animated emoji of cat face", "an animated emoji of fire")
    sections: dict[str, dict[str, Any]] = {
        # 8 keyframes a quarter of a second apart; 29 frames of them.
        "keyframes": {"height": 16, "width": 16, "fps": 4.0},
        "super_resolution": {"height": 64, "width": 64, "fps": 16.0},
        "translation": {"height": 128, "width": 128, "fps": 16.0},
    }
    parts: dict[str, dict[str, Any]] = {
        "vae": {"height": 128, "width": 128, "steps": 1_500},
        "image": {"steps": 4_000, "objective": {"timesteps": (0, 1000), "shift": 2.0}},
        "keyframes": {"steps": 1_500, "batch_size": 12},
        "interpolation": {"steps": 1_200},
        "first_frame": {"steps": 1_500},
        "super_resolution": {"steps": 400},
        "translation": {"steps": 1_200},
    }
    for name, section in sections.items():
        config[name].update(section)
    for name, section in parts.items():
        config.train[name].update(section)
        config.train[name].dataset = ("clips/emoji",)
    return config
