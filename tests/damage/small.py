"""A config file: the tiny cascade with networks that compile in seconds, for all programs."""

from ml_collections import ConfigDict

from show1_jax.configs import customize, tiny

UNET = {
    "channels": (32,),
    "layers": (1,),
    "attention": (False,),  # but for the middle, which always has it
    "attention_head_dim": (8,),
    "norm_groups": 8,
    "time_embed_dim": 32,
}
PIXEL = UNET | {"text_projection_dim": 32, "text_pooling_heads": 2}
CLIP = {"frames": 3, "height": 4, "width": 6, "fps": 1.0, "steps": 1}


def get_config(part: str = "") -> ConfigDict:
    """For one part, or "customize"."""
    config = customize.get_config() if part == "customize" else tiny.get_config(part)
    config.checkpoint = ""
    for name in ("keyframes", "interpolation"):
        config[name].unet.update(PIXEL)
    config.translation.unet.update(UNET, in_channels=2, out_channels=2)
    config.translation.vae = ConfigDict(
        {"channels": (4,), "layers_per_block": 1, "latent_channels": 2, "norm_groups": 2}
    )
    config.keyframes.update(CLIP)
    config.interpolation.update(frames_per_gap=3, steps=1)
    config.super_resolution.update(height=8, width=12, window=2, steps=1)
    config.translation.update(height=8, width=12, steps=2, strength=0.5)
    if part == "customize":
        config.customize.update(steps=1, batch_size=1, rank=2, log_every=1, warmup_steps=0)
        return config
    config.train.vae.update(height=8, width=12)
    for settings in config.train.values():
        settings.update(
            steps=2,
            batch_size=2,
            warmup_steps=1,
            threads=1,
            log_every=1,
            save_every=1,
            validation_batches=1,
            validation_batch_size=1,
            init="",
        )
    return config
