"""Stage 1, keyframes: text in, a few small frames that follow it out (Show-1, section 3.2).

The denoiser is conditioned on nothing but the text. It is sampled from noise.
"""

from collections.abc import Mapping
from typing import Any, Self

import jax
from ml_collections import ConfigDict

from show1_jax.stages.sampling import START, Call, Conditions, draw, run
from show1_jax.stages.stage import Stage
from show1_jax.stages.training import Example


class Keyframes(Stage):
    """The keyframes `(batch, frames, height, width, 3)`."""

    name = "keyframes"
    folder = "show-1-base"
    pipeline = "TextToVideoIFPipeline"

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """See `Stage.from_config`."""
        section = config[cls.name]
        return cls(
            frames=cls.at_least(section, "frames", 1),
            height=section.height,
            width=section.width,
            **cls.common(config),
        )

    def sample(self, call: Call, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """See `Stage.sample`; starts from nothing."""
        del inputs
        keys = call.keys(self.name)
        return run(call, draw(keys, START, self.batch_shape[1:]), Conditions(call.text), keys)

    def example(self, key: jax.Array, video: jax.Array, params: Mapping[str, Any]) -> Example:
        """The clip alone; see `Stage.example`."""
        del key, params
        return Example(video)

    def split(self, video: jax.Array, key: jax.Array, params: Mapping[str, Any]) -> Example:
        """The clip as one piece; see `Stage.split`."""
        del key, params
        return Example(video[None])


class Image(Keyframes):
    """The keyframes' denoiser without its temporal layers, trained on single frames.

    It is a part of training, not of the cascade: the keyframes start from it (Show-1, section 3.2,
    starts them from DeepFloyd's image model). A clip costs as much as many images, whose captions
    differ.
    """

    name = "image"
    in_cascade = False

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """The keyframes' settings, of one frame and without time."""
        section = ConfigDict(config[Keyframes.name].to_dict() | {"frames": 1})
        with section.unlocked():
            section.unet.update(temporal=False, temporal_heads="width")
        return super().from_config(ConfigDict(config.to_dict() | {cls.name: section}))

    @classmethod
    def stored_with(cls) -> str:
        """Its network is stored as the keyframes' is."""
        return Keyframes.name
