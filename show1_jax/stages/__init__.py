"""The cascade: one class for each stage, in the order in which they run.

Other code loops over `STAGES`, or asks `by_name`. A new stage is a class with one entry here and a
section in a config.
"""

from ml_collections import ConfigDict

from show1_jax.errors import InputError
from show1_jax.stages.autoencoder import Autoencoder
from show1_jax.stages.first_frame import FirstFrame
from show1_jax.stages.interpolation import Interpolation
from show1_jax.stages.keyframes import Image, Keyframes
from show1_jax.stages.stage import Stage
from show1_jax.stages.super_resolution import SuperResolution
from show1_jax.stages.translation import Translation

STAGES: tuple[type[Stage], ...] = (
    Keyframes,
    Interpolation,
    FirstFrame,
    SuperResolution,
    Translation,
)
"""The stages, in order."""

BEFORE: tuple[type[Autoencoder] | type[Image], ...] = (Autoencoder, Image)
"""What is trained before the stages, which build on it, in order."""

Part = Stage | Autoencoder


def names() -> list[str]:
    """The stages' names, in order."""
    return [stage.name for stage in STAGES]


def by_name(name: str) -> type[Stage]:
    """The class of a stage.

    Raises:
      InputError: if there is none of that name.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise InputError(f"there is no stage {name!r}; the stages are {', '.join(names())}")


def parts() -> dict[str, type[Part]]:
    """What can be trained, by name, in the order in which one builds on another."""
    return {part.name: part for part in (*BEFORE, *STAGES)}


def part(name: str) -> type[Part]:
    """The class of what can be trained.

    Raises:
      InputError: if there is none of that name.
    """
    if name not in parts():
        raise InputError(f"there is no part {name!r} to train; take {', '.join(parts())}")
    return parts()[name]


def build(config: ConfigDict) -> dict[str, Stage]:
    """All stages as a config describes them, by name.

    Raises:
      InputError: if a setting is wrong.
    """
    return {stage.name: stage.from_config(config) for stage in STAGES}
