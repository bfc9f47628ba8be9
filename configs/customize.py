"""Teaches the keyframes of a checkpoint a motion from one clip, or several.

    python train.py --config configs/customize.py --config.video=clip.mp4 \
        --config.prompt="a small red circle moving in a loop on a black background" \
        --config.out=circle.safetensors
    python sample.py --adapter circle.safetensors \
        --prompt "a large blue square moving in a loop on a black background"

The first takes 400 steps of 8 of the tiny cascade, 7 to 10 minutes on one core.
Prompts of other colors and shapes on the clip's background then mostly move as
it does (docs/motion.md). `configs/customize.py:show1` is for the released
cascade: give --config.checkpoint. Several clips: --config.video="a.mp4|b.mp4",
and as many prompts.
"""

from typing import Any

from ml_collections import ConfigDict

from show1_jax.configs import show1, tiny

BASES = {"tiny": tiny, "show1": show1}


def get_config(base: str = "") -> ConfigDict:
    """The cascade `base`, "tiny" or "show1", and how its keyframes are customized."""
    if base and base not in BASES:
        raise ValueError(f"there is no base {base!r}: take {' or '.join(BASES)}")
    config = BASES[base or "tiny"].get_config()
    objective = config.train.keyframes.objective
    objective.variance_weight = 0.0
    objective.motion = "deviation"  # how the clip moves, not how it looks
    del config.train
    # One clip does not divide: its frames do.
    config.mesh = {"slices": -1, "data": 1, "fsdp": 1, "frames": -1, "tensor": 1}
    settings: dict[str, Any] = {
        # temporal_attention (the paper), temporal_attention_qkv (VMC), temporal or all;
        "trainable": "temporal_attention",
        "rank": 0,  # or low-rank changes of it (LoRA): 4 and 16 are usual
        "steps": 400,
        "batch_size": 1,
        "accumulate": 1,
        "learning_rate": 1e-4,
        "warmup_steps": 20,
        "weight_decay": 0.01,
        "b2": 0.999,
        "clip_norm": 1.0,
        "ema_decay": 0.99,
        "caption_dropout": 0.1,
        # Clips shown without their caption in other colors, for motion of what looks otherwise.
        "recolor": 0.0,
        "objective": objective,
        "dtype": "auto",
        "remat": "nothing_saveable",
        "seed": 0,
        "log_every": 50,
    }
    if base != "show1":
        settings |= {"rank": 16, "learning_rate": 5e-3}
        settings |= {"batch_size": 8, "dtype": "float32", "remat": "", "recolor": 0.6}
        objective.shift = 8.0  # the noisiest timesteps decide how things move
        # Below, which is the last of the default ten steps, the network is left as it was: it
        # knows more shapes than the clip.
        objective.timesteps = (150, 1000)
    config.customize = settings
    config.video, config.prompt, config.out = "", "", "adapter.safetensors"
    return config
