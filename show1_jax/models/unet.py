"""The denoiser: one U-Net for images or videos, pixels or latents.

The five denoisers of the cascade are five `UNetConfig`s of this class (Show-1, sections 3.2 to
3.5).

Modules call `parallel.sharding.constrain_batch` and `gather_params`, which read the mesh set by
`jax.set_mesh`. Without a mesh, both do nothing.
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from show1_jax.errors import InputError
from show1_jax.models.attention import AddedKVAttention, SpatialTransformer, TextPooling
from show1_jax.models.layers import (
    GroupNorm,
    ResnetBlock,
    TimeEmbedding,
    conv3x3,
    dtypes,
)
from show1_jax.models.ops.activation import activation
from show1_jax.models.ops.embedding import sinusoidal_embedding
from show1_jax.models.temporal import TemporalConv, TemporalTransformer
from show1_jax.parallel.sharding import constrain_batch, gather_params

HeadReading = Literal["width", "number"]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The settings of a denoiser.

    Attributes:
      in_channels: channels of the noisy sample together with its condition.
      out_channels: twice the sample's channels where the variance is learned.
      channels: width of each level, finest first.
      layers: number of ResNet blocks of each level on the way down; one more on the way up.
      attention: whether each level attends to the text and over frames.
      attention_head_dim: one number per level; the next two fields say what it means. If the
        numbers differ, the way up of a latent network uses them in reverse order, and that of a
        pixel network in the same order, like the released code.
      spatial_heads: whether that number is the "width" of a head of spatial attention, or the
        "number" of heads.
      temporal_heads: the same for temporal attention. It is the width in space and the number in
        time for Show-1's pixel networks, the number in both for its latent network, and the width
        in both for diffusers' own 3D network.
      space: "pixel": text and image share one attention, and ResNet blocks resample. "latent":
        transformers have cross-attention to the text, and convolutions resample.
      temporal: False for an image denoiser, which treats each frame independently.
      input_transformer_head_dim: width of a head of the temporal transformer after the first
        convolution, which has eight heads; None for no such transformer.
      text_dim: width of the text embeddings.
      text_projection_dim: width to which text embeddings are projected for attention; None for no
        projection.
      text_pooling_heads: number of heads that pool the text into the time embedding; None for no
        pooling.
      noise_level: whether the noise level of the condition is an input.
      time_embed_dim: width of the time embedding.
      activation: "gelu" or "silu".
      time_embedding_activation: applied once to the sum of the embeddings.
      skip_time_activation: whether ResNet blocks use the time embedding without an activation.
      scale_shift: whether the time embedding scales and shifts, instead of only shifting.
      output_scale: ResNet blocks divide their sum by it.
      mid_output_scale: the same in the middle of the network.
      norm_groups: groups of the normalisation of each frame.
      norm_eps: its epsilon.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    attention: tuple[bool, ...]
    attention_head_dim: tuple[int, ...]
    spatial_heads: HeadReading
    temporal_heads: HeadReading
    space: Literal["pixel", "latent"]
    text_dim: int
    time_embed_dim: int
    temporal: bool = True
    input_transformer_head_dim: int | None = None
    text_projection_dim: int | None = None
    text_pooling_heads: int | None = None
    noise_level: bool = False
    activation: str = "silu"
    time_embedding_activation: str | None = None
    skip_time_activation: bool = False
    scale_shift: bool = False
    output_scale: float = 1.0
    mid_output_scale: float = 1.0
    norm_groups: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raises InputError for unknown values, or if settings differ in the number of levels."""
        for field, options in (
            ("space", ("pixel", "latent")),
            ("spatial_heads", ("width", "number")),
            ("temporal_heads", ("width", "number")),
        ):
            if getattr(self, field) not in options:
                raise InputError(
                    f"{field} is {getattr(self, field)!r}, but must be {' or '.join(options)}"
                )
        for field in ("layers", "attention", "attention_head_dim"):
            if len(getattr(self, field)) != len(self.channels):
                raise InputError(
                    f"{field} has {len(getattr(self, field))} levels, but channels has "
                    f"{len(self.channels)}"
                )

    @property
    def size_multiple(self) -> int:
        """Height and width of a sample must be multiples of this number."""
        return 2 ** (len(self.channels) - 1)


def split_into_heads(channels: int, head_dim: int, reading: HeadReading) -> tuple[int, int]:
    """Returns the number of heads and their width; `reading` says what `head_dim` is."""
    if reading == "number":
        return head_dim, channels // head_dim
    return channels // head_dim, head_dim


def layer_class(parent: Any, kind: type[Any], static_argnums: tuple[int, ...] = ()) -> type[Any]:
    """Returns a layer's class with gathered parameters and rematerialisation.

    Parameters are gathered (`gather_params`), and activations are recomputed (`parent.remat`),
    layer by layer, so that only those of one layer are in memory at once.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      parent: the module that calls the layer; has `dtype` and `remat`.
      kind: class of the layer.
      static_argnums: indices of arguments that are not arrays, counted from self.
    """
    if parent.is_initializing():
        return kind
    kind = nn.map_variables(kind, "params", functools.partial(gather_params, dtype=parent.dtype))
    if parent.remat is None:
        return kind
    policy = getattr(jax.checkpoint_policies, parent.remat)
    return nn.remat(kind, static_argnums=static_argnums, policy=policy)


class Level(nn.Module):
    """One resolution of the network: ResNet blocks, attention, and their temporal modules.

    On the way down, the outputs are skip connections. On the way up, `skips` are used from the
    end. `middle` adds a ResNet block before the first attention.
    """

    config: UNetConfig
    channels: int
    layers: int
    attention: bool
    head_dim: int
    resample: Literal["down", "up"] | None = None
    middle: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: str | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        text: jax.Array,
        skips: list[jax.Array] | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Returns the level's output, and the outputs of all its layers, coarsest last.

        Args:
          x: `(batch, frames, h, w, c)`.
          time: time embedding, `(batch, d)`.
          text: `(batch, tokens, width)`.
          skips: one array per layer, concatenated to its input on the way up.
          train: enables dropout.
        """
        outputs = []
        if self.middle:
            x = self._resnet(x, time, 0, train)
        for i in range(self.layers):
            if self.middle:
                x = self._resnet(self._attend(x, text, i), time, i + 1, train)
                continue
            x = self._resnet(x, time, i, train, skips[-1 - i] if skips is not None else None)
            if self.attention:
                x = self._attend(x, text, i)
            outputs.append(x)
        if self.resample is not None:
            x = self._resample(x, time)
            outputs.append(x)
        return x, outputs

    def _resnet_block(self, name: str, resample: Literal["down", "up"] | None) -> ResnetBlock:
        config = self.config
        return layer_class(self, ResnetBlock)(
            self.channels,
            config.norm_groups,
            config.norm_eps,
            activation(config.activation),
            scale_shift=config.scale_shift,
            skip_time_act=config.skip_time_activation,
            output_scale=config.mid_output_scale if self.middle else config.output_scale,
            resample=resample,
            name=name,
            **dtypes(self),
        )

    def _resnet(
        self, x: jax.Array, time: jax.Array, i: int, train: bool, skip: jax.Array | None = None
    ) -> jax.Array:
        x = constrain_batch(self._resnet_block(f"resnet_{i}", None)(x, time, skip))
        if self.config.temporal:
            conv = layer_class(self, TemporalConv, static_argnums=(2,))
            x = constrain_batch(conv(name=f"temporal_conv_{i}", **dtypes(self))(x, train))
        return x

    def _attend(self, x: jax.Array, text: jax.Array, i: int) -> jax.Array:
        config = self.config
        spatial = layer_class(
            self, AddedKVAttention if config.space == "pixel" else SpatialTransformer
        )
        heads = split_into_heads(self.channels, self.head_dim, config.spatial_heads)
        x = spatial(*heads, config.norm_groups, name=f"attention_{i}", **dtypes(self))(x, text)
        x = constrain_batch(x)
        if config.temporal:
            heads = split_into_heads(self.channels, self.head_dim, config.temporal_heads)
            x = layer_class(self, TemporalTransformer)(
                *heads, config.norm_groups, name=f"temporal_attention_{i}", **dtypes(self)
            )(x)
        return constrain_batch(x)

    def _resample(self, x: jax.Array, time: jax.Array) -> jax.Array:
        name = f"{self.resample}sample"
        if self.config.space == "pixel":
            return self._resnet_block(name, self.resample)(x, time)
        kind = layer_class(self, nn.Conv)
        how: dict[str, Any] = {"stride": 2} if self.resample == "down" else {"upsampled": True}
        return conv3x3(self.channels, name, kind=kind, **how, **dtypes(self))(x)


class UNet(nn.Module):
    """Predicts the noise (or velocity) in a clip, given the time, the text and a condition.

    Reads the mesh set by `jax.set_mesh`.

    Attributes:
      config: settings.
      dtype: compute dtype.
      param_dtype: dtype of the parameters.
      remat: name of one of `jax.checkpoint_policies`, which decides what each layer keeps for the
        backward pass; None keeps everything. Changes only memory and time.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: str | None = None

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        text: jax.Array,
        noise_level: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Predicts noise (or velocity) for a batch of clips; an image is a clip of one frame.

        Args:
          sample: `(batch, frames, height, width, in_channels)`.
          timesteps: `(batch,)`, 0 to 999.
          text: `(batch, tokens, text_dim)`.
          noise_level: `(batch,)` timesteps to which noise was added to the condition, for networks
            with `config.noise_level`.
          train: enables dropout in the temporal convolutions, which uses the random stream
            "dropout".

        Returns:
          `(batch, frames, height, width, out_channels)` in fp32.

        Raises:
          InputError: if a shape does not match the configuration.
        """
        config = self.config
        self._check(sample, timesteps, text, noise_level)
        types = dtypes(self)
        channels, levels = config.channels, range(len(config.channels))
        text = text.astype(self.dtype)
        time = self._embed(timesteps, text, noise_level)
        if config.text_projection_dim is not None:
            projection = layer_class(self, nn.Dense)
            text = projection(config.text_projection_dim, name="text_projection", **types)(text)

        def level(name: str, i: int, head_dim: int, **settings: Any) -> Level:
            return Level(
                config, channels[i], attention=config.attention[i], head_dim=head_dim,
                remat=self.remat, name=name, **types, **settings,
            )  # fmt: skip

        x = conv3x3(channels[0], "conv_in", **types)(constrain_batch(sample.astype(self.dtype)))
        if config.input_transformer_head_dim is not None:
            transformer = layer_class(self, TemporalTransformer)
            x = transformer(
                8, config.input_transformer_head_dim, 32, name="input_transformer", **types
            )(x)
            x = constrain_batch(x)
        skips = [x]
        for i in levels:
            x, outputs = level(
                f"down_{i}", i, config.attention_head_dim[i], layers=config.layers[i],
                resample="down" if i < levels[-1] else None,
            )(x, time, text, None, train)  # fmt: skip
            skips += outputs
        x, _ = level("mid", -1, config.attention_head_dim[-1], layers=1, middle=True)(
            x, time, text, None, train
        )
        for i in levels:
            down = levels[-1] - i
            layers = config.layers[down] + 1
            x, _ = level(
                f"up_{i}", down, config.attention_head_dim[down if config.space == "latent" else i],
                layers=layers, resample="up" if down > 0 else None,
            )(x, time, text, skips[-layers:], train)  # fmt: skip
            skips = skips[:-layers]

        x = GroupNorm(config.norm_groups, config.norm_eps, name="conv_norm_out", **types)(x)
        x = activation(config.activation)(x)
        return conv3x3(config.out_channels, "conv_out", jnp.float32, self.param_dtype)(x)

    def _embed(
        self, timesteps: jax.Array, text: jax.Array, noise_level: jax.Array | None
    ) -> jax.Array:
        config = self.config
        types = dtypes(self)
        act = activation(config.activation)

        def embed(name: str, value: jax.Array) -> jax.Array:
            sinusoids = sinusoidal_embedding(value, config.channels[0])
            return TimeEmbedding(
                config.time_embed_dim, act, param_dtype=self.param_dtype, name=name
            )(sinusoids)

        time = embed("time_embedding", timesteps)
        if noise_level is not None:
            time = time + embed("noise_level_embedding", noise_level)
        if config.text_pooling_heads is not None:
            time = time + layer_class(self, TextPooling)(
                config.time_embed_dim, config.text_pooling_heads, name="text_pooling", **types
            )(text)
        if config.time_embedding_activation is not None:
            time = activation(config.time_embedding_activation)(time)
        return time.astype(self.dtype)

    def _check(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        text: jax.Array,
        noise_level: jax.Array | None,
    ) -> None:
        config = self.config
        if sample.ndim != 5 or sample.shape[-1] != config.in_channels:
            raise InputError(
                f"sample has shape {sample.shape}, but must be "
                f"(batch, frames, height, width, {config.in_channels})"
            )
        batch, _, height, width, _ = sample.shape
        multiple = config.size_multiple
        if height % multiple or width % multiple:
            raise InputError(
                f"a {width}x{height} sample cannot be downsampled "
                f"{len(config.channels) - 1} times; choose a width and height that are multiples "
                f"of {multiple}"
            )
        if timesteps.shape != (batch,):
            raise InputError(
                f"timesteps has shape {timesteps.shape}, but must be ({batch},), one per clip"
            )
        if text.ndim != 3 or text.shape[0] != batch or text.shape[-1] != config.text_dim:
            raise InputError(
                f"text has shape {text.shape}, but must be ({batch}, tokens, {config.text_dim})"
            )
        if config.noise_level != (noise_level is not None):
            raise InputError(
                "this denoiser needs the noise level of its condition; pass noise_level"
                if config.noise_level
                else "this denoiser takes no noise_level; do not pass it"
            )
        if noise_level is not None and noise_level.shape != (batch,):
            raise InputError(
                f"noise_level has shape {noise_level.shape}, but must be ({batch},), one per clip"
            )
