"""The whole cascade with networks so small that two CPU cores run it: the default.

    python sample.py --prompt "a small red circle moving left on a black background"

Expect 29 frames of 576x320 in OUT/000/translation.mp4, made by all five
denoisers. The checkpoint that comes with it is untrained: it shows that
everything works, and its video is noise.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import show1

CHECKPOINT = Path(__file__).parent.parent / "show1_jax" / "assets" / "tiny"


def get_config() -> ConfigDict:
    """The released settings with few steps; the checkpoint says what its networks are."""
    config = show1.get_config()
    config.checkpoint = str(CHECKPOINT)
    config.dtype = "float32"
    del config.text.t5, config.text.clip
    # More steps make no better noise.
    steps = {"keyframes": 4, "interpolation": 2, "first_frame": 2, "super_resolution": 1}
    for stage, number in (steps | {"translation": 2}).items():
        del config[stage].unet, config[stage].solver
        config[stage].steps = number
    del config.translation.vae
    return config
