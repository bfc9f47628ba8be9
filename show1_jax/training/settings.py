"""Which numbers a training's settings may be: of a part's, and of a customization's."""

from ml_collections import ConfigDict

from show1_jax.errors import InputError

COUNTS = (
    "steps",
    "batch_size",
    "accumulate",
    "log_every",
    "save_every",
    "validate_every",
    "sample_every",
    "validation_batches",
    "validation_batch_size",
    "keep",
)
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "learning_rate": (0, 1e3),
    "warmup_steps": (0, 1e12),
    "weight_decay": (0, 1e3),
    "b2": (0, 1),
    "clip_norm": (1e-12, 1e12),
    "ema_decay": (0, 1),
    "caption_dropout": (0, 1),
    "recolor": (0, 1),
    "max_noise_level": (1, 1000),
    "threads": (0, 1024),
    "kl_weight": (0, 1e3),
    "gradient_weight": (0, 1e3),
    "squared_weight": (0, 1e3),
    "workers": (0, 1024),
    "clip_seconds": (0, 1e6),
    "rank": (0, 4096),
}

TEXTS = ("auto", "cache", "step")  # see training/text.py

# Of `jax.checkpoint_policies`, those that are policies as they are.
REMAT = (
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)


def check(settings: ConfigDict, where: str, parts: int) -> None:
    """Refuses numbers that make no run, and a batch that the mesh cannot spread.

    Args:
      settings: of a training; those that it lacks are not looked at.
      where: they are in the config, for messages.
      parts: into how many the mesh splits a batch.

    Raises:
      InputError: if there is such.
    """
    for name in COUNTS:
        if name in settings and settings[name] < 1:
            raise InputError(f"{where}.{name} is {settings[name]}, but must be at least 1")
    for name, (low, high) in RANGES.items():
        if name in settings and not low <= settings[name] <= high:
            raise InputError(f"{where}.{name} is {settings[name]}, but must be {low:g} to {high:g}")
    remat = settings.get("remat")
    if remat and remat not in REMAT:
        raise InputError(f"{where}.remat is {remat!r}, not one of {', '.join(REMAT)}")
    if (text := settings.get("text", "auto")) not in TEXTS:
        raise InputError(f"{where}.text is {text!r}, not one of {', '.join(TEXTS)}")
    if settings.batch_size % settings.accumulate:
        raise InputError(
            f"{where}.batch_size {settings.batch_size} cannot be split into "
            f"{settings.accumulate} parts: make it a multiple of accumulate"
        )
    if settings.batch_size // settings.accumulate % parts:
        multiple = parts * settings.accumulate
        raise InputError(
            f"{where}.batch_size {settings.batch_size} in {settings.accumulate} parts cannot "
            f"be spread over {parts} devices (mesh data x fsdp): make it a multiple of {multiple}, "
            "or have devices share each clip, with mesh.frames"
        )
