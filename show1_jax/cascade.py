"""The whole cascade: text, keyframes, interpolation, super-resolution, translation.

Stages run one after the other for all prompts, so that the weights of one
alone are in memory. What a stage made is kept by the caller (`Results`), and
may come from an earlier run.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from show1_jax.adapters.files import (
    Adapter,
    load_adapter,
    parse_adapter,
)
from show1_jax.checkpoints.networks import abstract_params
from show1_jax.checkpoints.released import StageFolder, find_stages, t5_folder
from show1_jax.checkpoints.store import fingerprint
from show1_jax.diffusion.solvers import make_solver
from show1_jax.errors import LESS_MEMORY_NETWORK, LESS_MEMORY_SAMPLING, InputError, fitting
from show1_jax.media import from_uint8, resize_uint8, to_uint8
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.parallel.mesh import batch_parts, compute_dtype, make_mesh, rounded_up
from show1_jax.parallel.sharding import put_batch
from show1_jax.paths import local_path
from show1_jax.stages import interpolation, inversion, keyframes, super_resolution, translation
from show1_jax.stages.results import Results, checked
from show1_jax.stages.sampling import Denoiser, Progress, in_parts
from show1_jax.text.cleaning import clean_caption, normalize
from show1_jax.text.encoding import load_encoder
from show1_jax.text.tokenizers import LENGTH

STAGES = ("keyframes", "interpolation", "first_frame", "super_resolution", "translation")
# What each stage takes from the ones before; first_frame's result is optional.
INPUTS = {
    "keyframes": (),
    "interpolation": ("keyframes",),
    "first_frame": ("interpolation",),
    "super_resolution": ("interpolation",),
    "translation": ("super_resolution",),
}

IMAGES = ("first_frame",)
"""Stages that make one frame."""

# Whose size the frames of a stage have that has none of its own.
SIZES = {"interpolation": "keyframes", "first_frame": "super_resolution"}


class StageProgress(Protocol):
    """What is called to tell how far a run is; `Bars.update` is one."""

    def __call__(self, stage: str, done: int, steps: int, doing: str = "", /) -> None:
        """Told a stage or a text encoder, and what `Progress` is told of it."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Embeddings `(tokens, width)` by prompt, the negative prompt's under None."""

    t5: Mapping[str | None, np.ndarray] | None
    clip: Mapping[str | None, np.ndarray] | None


class Cascade:
    """The stages of a checkpoint that are to be run, checked before any weight is read."""

    def __init__(
        self,
        config: ConfigDict,
        checkpoint: str | Path,
        stages: Sequence[str] | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Reads every configuration and checks that sizes fit.

        Args:
          config: as in `configs/show1.py`.
          checkpoint: a converted checkpoint.
          stages: the stages to run; None for all that the checkpoint has.
          devices: to lay out as `config.mesh` says; None for all.

        Raises:
          InputError: if a stage is unknown or not there, a size does not fit, or there
            are adapters though the keyframes are not run.
        """
        self.config = config
        self.checkpoint = checkpoint = local_path(checkpoint)
        self.dtype = compute_dtype(config.dtype)
        self.folders = find_stages(checkpoint)
        self.noise = None
        if config.from_noise:
            self.noise = inversion.load_noise(local_path(config.from_noise))
        self.stages = self._choose(stages)
        self.vae = self._vae() if "translation" in self.stages else None
        if self.noise is not None:
            self._check_noise(self.noise)
        self.denoisers = {stage: self._denoiser(stage) for stage in self.stages}
        self.adapters = {stage: self._adapters(stage) for stage in self.stages}
        if config.batch_size < 1:
            raise InputError(f"batch_size is {config.batch_size}, but must be at least 1")
        self.mesh = make_mesh(config.mesh, devices)
        self.batch_size = rounded_up(config.batch_size, batch_parts(self.mesh))
        for stage in self.stages:
            self._check_size(stage)
            self._check_values(stage)

    def _choose(self, stages: Sequence[str] | None) -> list[str]:
        if stages is None:
            # Of translation, training makes the autoencoder long before the denoiser.
            # What comes before the stage that is given noise has no part in the result.
            useful = STAGES if self.noise is None else STAGES[STAGES.index(self.noise.stage) :]
            there = [stage for stage in useful if stage in self.folders]
            there = [stage for stage in there if self.folders[stage].has("unet")] or there
            missing = [stage for stage in useful if stage not in there]
            self._check_gaps(there, missing)
            if missing:
                logging.warning("The checkpoint has no %s: left out.", ", ".join(missing))
            stages = there
        for stage in stages:
            if stage not in STAGES:
                raise InputError(f"there is no stage {stage!r}; the stages are {', '.join(STAGES)}")
            if stage not in self.folders:
                raise InputError(f"the checkpoint has no {stage}, only {', '.join(self.folders)}")
        if self.config.keyframes.get("adapters") and "keyframes" not in stages:
            raise InputError(
                "adapters are for the keyframes, which are not among the stages to run"
            )
        return [stage for stage in STAGES if stage in stages]

    def _check_gaps(self, there: Sequence[str], missing: Sequence[str]) -> None:
        """Raises InputError if a stage's folder is there, but not its denoiser, and later ones are.

        The last stages may be missing: they are trained last.
        """
        before = STAGES[: STAGES.index(there[-1])] if there else ()
        for stage in missing:
            if stage in before and stage in self.folders:
                raise InputError(
                    f"{self.folders[stage].folder / 'unet' / 'params'} is missing, though {stage} "
                    f"comes before {there[-1]}: put it there, or name the --stages to run"
                )

    def _denoiser(self, stage: str) -> Denoiser:
        folder, config = self.folders[stage], self.config[stage]
        unet = folder.module("unet", self.dtype)
        assert isinstance(unet, UNet)
        if not unet.config.temporal and stage not in IMAGES:
            raise InputError(
                f"{folder.folder / 'unet'} is an image network, which makes no clips: {stage} can "
                "be trained from it (init)"
            )
        reading = config.get("head_reading", "released")
        if reading not in ("released", "width", "number"):
            raise InputError(f"{stage}.head_reading is {reading!r}, not released, width or number")
        if reading != "released":
            heads = {"spatial_heads": reading, "temporal_heads": reading}
            unet = unet.clone(config=dataclasses.replace(unet.config, **heads))
        _warn_of_differences(stage, config.get("unet"), unet.config)
        solver = folder.solver()
        _warn_of_differences(stage, config.get("solver"), solver)
        if "noise_schedule" in config:
            _warn_of_differences(stage, config.noise_schedule, folder.noise_schedule())
        denoiser = Denoiser(
            unet,
            make_solver(solver, config.steps),
            dropout=config.get("dropout", False),
            guided=config.guidance > 1,
        )
        noise = self.noise_of(stage)
        if noise is not None:
            return inversion.from_noise(denoiser, noise.steps)
        return denoiser

    def _adapters(self, stage: str) -> list[tuple[Adapter, float]]:
        parsed = [parse_adapter(text) for text in self.config[stage].get("adapters", ())]
        # Tracing a large network takes a second: only where there are adapters.
        shapes = abstract_params(self.denoisers[stage].unet) if parsed else {}
        return [(load_adapter(path, shapes), weight) for path, weight in parsed]

    def _check_noise(self, found: inversion.Noise) -> None:
        name, stage = self.config.from_noise, found.stage
        if stage not in self.stages:
            raise InputError(f"{name} is noise of {stage}, which is not among the stages to run")
        vae = None if self.vae is None else self.vae.config
        pieces, *size = sample_size(self.config, stage, 1, vae)
        if stage == "super_resolution":
            pieces = len(list(super_resolution.windows(clip_frames(self.config), size[0])))
        if found.noise.shape != (pieces, *size):
            raise InputError(
                f"{name} is noise of {stage} at other sizes than the config's: its parts, frames, "
                f"height, width and channels are {found.noise.shape}, not {(pieces, *size)}"
            )

    def noise_of(self, stage: str) -> inversion.Noise | None:
        """The noise of a clip that the stage starts from; None if it is not given one."""
        return self.noise if self.noise is not None and self.noise.stage == stage else None

    def inputs(self, stage: str) -> tuple[str, ...]:
        """The stages whose results it starts from."""
        return INPUTS[stage] if self.noise_of(stage) is None else ()

    def _vae(self) -> VAE:
        vae = self.folders["translation"].module("vae", self.dtype)
        assert isinstance(vae, VAE)
        _warn_of_differences("translation", self.config.translation.get("vae"), vae.config)
        return vae

    def _check_size(self, stage: str) -> None:
        section = SIZES.get(stage, stage)
        multiple = self.denoisers[stage].unet.config.size_multiple
        if stage == "translation" and self.vae is not None:
            multiple *= self.vae.config.downscale
        for side in ("height", "width"):
            size = self.config[section][side]
            if size < 1 or size % multiple:
                raise InputError(
                    f"{section}.{side} is {size}, but the {stage} denoiser needs "
                    f"a multiple of {multiple}"
                )

    def size(self, stage: str) -> tuple[int, int]:
        """Height and width of a stage's frames."""
        section = self.config[SIZES.get(stage, stage)]
        return section.height, section.width

    def _check_values(self, stage: str) -> None:
        """Raises InputError for values that would stop the stage, or spoil it, later."""
        config, solver = self.config[stage], self.denoisers[stage].solver
        least = {"frames": 1, "frames_per_gap": 2, "window": 2, "vae_frames": 1}
        for key, value in config.items():
            if key in least and value < least[key]:
                raise InputError(f"{stage}.{key} is {value}, but must be at least {least[key]}")
            if key == "noise_level" and not 0 <= value < solver.config.schedule.train_steps:
                last = solver.config.schedule.train_steps - 1
                raise InputError(f"{stage}.{key} is {value}, but must lie within 0 to {last}")
            if key == "fps" and not 0.01 <= value <= 1000:
                raise InputError(f"{stage}.fps is {value}, but must lie within 0.01 to 1000")
        if not np.isfinite(config.guidance):
            raise InputError(f"{stage}.guidance is {config.guidance}, which is not a number")
        if "strength" in config and self.noise_of(stage) is None:
            solver.first_step(float(config.strength))
        if "interpolation" in self.stages and stage == "keyframes" and config.frames < 2:
            raise InputError("keyframes.frames is 1, but interpolation needs at least 2")

    def encode(self, prompts: Sequence[str], progress: StageProgress | None = None) -> Texts:
        """Encodes prompts with the encoders that the stages need, which are then dropped.

        Args:
          prompts: the texts.
          progress: told of "t5" and "clip".

        Raises:
          InputError: if the checkpoint lacks an encoder or its tokenizer, a prompt is no text,
            or memory is short.
        """
        for prompt in prompts:
            check_text(prompt)
        clean = clean_caption if self.config.text.clean_captions else normalize
        texts: dict[str | None, str] = {prompt: clean(prompt) for prompt in prompts}
        t5 = clip = None
        if set(self.stages) - {"translation"}:
            tokens = self.config.text.t5_tokens
            folder = t5_folder(self.folders)
            t5 = self._encode("t5", folder, texts | {None: ""}, tokens, progress)
        if "translation" in self.stages:
            texts |= {None: self.config.translation.negative_prompt}
            clip = self._encode("clip", self.folders["translation"], texts, LENGTH, progress)
        return Texts(t5, clip)

    def _encode(
        self,
        name: str,
        folder: StageFolder,
        texts: Mapping[str | None, str],
        tokens: int,
        progress: StageProgress | None,
    ) -> dict[str | None, np.ndarray]:
        """Embeddings by what the texts are of, in batches of one size."""
        if progress is not None:
            progress(name, 0, 1, f"reading {_size(folder.size('text_encoder'))}")
        encoder = load_encoder(folder, self.dtype, tokens)
        _warn_of_differences(name, self.config.text.get(name), encoder.module.config)
        own_progress = functools.partial(progress, name) if progress else None
        distinct = list(dict.fromkeys(texts.values()))
        embeddings = dict(
            zip(distinct, encoder(distinct, self.batch_size, own_progress), strict=True)
        )
        return {of: embeddings[text] for of, text in texts.items()}

    def run(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        results: Results,
        progress: StageProgress | None = None,
        items: Iterable[int] | None = None,
    ) -> None:
        """Runs the stages on the items that lack their results.

        An item that fails is left out from there on.

        Args:
          prompts: one for each item.
          seeds: one for each item, 0 to 2**32 - 1.
          results: holds the results of stages that are not run here, and receives the others.
          progress: told what goes on: what is read, compiled and run.
          items: which of them to make; None for all.

        Raises:
          InputError: if there is not one seed for each prompt, an encoder is missing, memory is
            short, or a result cannot be written.
        """
        if isinstance(prompts, str):
            raise InputError("the prompts are one text: give a list of them")
        if len(prompts) != len(seeds):
            raise InputError(
                f"there are {len(prompts)} prompts and {len(seeds)} seeds: give each its own"
            )
        left = list(range(len(prompts)) if items is None else items)
        with jax.set_mesh(self.mesh):
            self._run(prompts, seeds, results, progress, left)

    def _run(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        results: Results,
        progress: StageProgress | None,
        left: list[int],
    ) -> None:
        made_by = self.made_by
        # An item that lacks a stage may come to lack later ones, but no other item does.
        left = [
            item
            for item in left
            if not all(results.done(item, stage, made_by[stage]) for stage in self.stages)
        ]
        left = [item for item in left if self._is_text(prompts[item], item, results)]
        if not left:
            return
        texts = self.encode([prompts[item] for item in left], progress)
        for stage in self.stages:
            settings = made_by[stage]
            missing = [item for item in left if not results.done(item, stage, settings)]
            if not missing:
                continue
            failed = set(self._unusable(stage, missing, results))
            usable = [item for item in missing if item not in failed]
            params = self.params(stage, progress) if usable else {}
            own_progress = functools.partial(progress, stage) if progress else None
            batches = list(_batches(usable, self.batch_size))
            for i, batch in enumerate(batches):
                report = in_parts(own_progress, i, len(batches))
                items = [item for item, _ in batch]
                own_texts = [prompts[item] for item in items]
                given = (own_texts, items, seeds, results, report)
                with fitting(stage, LESS_MEMORY_SAMPLING):
                    try:
                        made = np.asarray(self._sample(stage, params, texts, *given))
                    except InputError as error:
                        for item in dict.fromkeys(items):
                            failed.add(item)
                            results.fail(item, stage, error)
                        continue
                for row, (item, wanted) in zip(made, batch, strict=True):
                    if not wanted:
                        continue
                    if np.isfinite(row).all():
                        results.save(item, stage, row, settings)
                    else:
                        failed.add(item)
                        results.fail(item, stage, InputError("the result is not finite"))
            left = [item for item in left if item not in failed]
            # The next stage's weights take the place of these.
            del params

    def _is_text(self, prompt: str, item: int, results: Results) -> bool:
        """Whether a prompt can be encoded; one that cannot fails, and the others go on."""
        try:
            check_text(prompt)
        except InputError as error:
            results.fail(item, self.stages[0], error)
            return False
        return True

    def params(self, stage: str, progress: StageProgress | None = None) -> dict[str, Any]:
        """The parameters of a stage's "unet", with its adapters, and of its "vae" if it has one.

        Raises:
          InputError: if they cannot be read, or memory is short.
        """
        folder = self.folders[stage]
        networks: dict[str, nn.Module] = {"unet": self.denoisers[stage].unet}
        if self.vae is not None and stage == "translation":
            networks["vae"] = self.vae
        if progress is not None:
            size = sum(folder.size(name) for name in networks)
            progress(stage, 0, 1, f"reading {_size(size)}")
        with fitting(stage, LESS_MEMORY_NETWORK):
            params = {
                name: folder.params(name, module, self.dtype) for name, module in networks.items()
            }
            params["unet"] = keyframes.adapted(params["unet"], self.adapters[stage])
        return params

    def _unusable(self, stage: str, items: Sequence[int], results: Results) -> Iterator[int]:
        """Items of which a result that the stage starts from is missing or damaged."""
        for item in items:
            try:
                for needed in self.inputs(stage):
                    if not results.has(item, needed):
                        raise InputError(
                            f"{stage} starts from the result of {needed}, which it lacks"
                        )
                    self._result(results, item, needed)
                own = self.noise_of(stage) is not None
                if stage == "super_resolution" and not own and results.has(item, "first_frame"):
                    self._result(results, item, "first_frame")
            except InputError as error:
                results.fail(item, stage, error)
                yield item

    def _result(self, results: Results, item: int, stage: str) -> np.ndarray:
        """A result that another stage starts from; see `checked`."""
        return checked(results.load(item, stage), stage, self._result_shape(stage))

    def _result_shape(self, stage: str) -> tuple[int, ...]:
        size = (*self.size(stage), 3)
        if stage in IMAGES:
            return size
        frames = self.config.keyframes.frames if stage == "keyframes" else clip_frames(self.config)
        return (frames, *size)

    @functools.cached_property
    def made_by(self) -> dict[str, dict[str, Any]]:
        """The `settings` of every stage to run."""
        return {stage: self.settings(stage) for stage in self.stages}

    def settings(self, stage: str) -> dict[str, Any]:
        """What reproduces a stage's result from those before it, ready for JSON."""
        denoiser = self.denoisers[stage]
        solver, noise = dataclasses.asdict(denoiser.solver.config), self.noise_of(stage)
        return self.config[stage].to_dict() | {
            "steps": denoiser.solver.num_steps,
            **({} if noise is None else {"strength": noise.strength}),
            "unet": dataclasses.asdict(denoiser.unet.config),
            # JSON has no infinity, which stands for what is not clipped.
            "solver": {name: value for name, value in solver.items() if value != -math.inf},
            "dtype": self.dtype.name,
            "clean_captions": self.config.text.clean_captions,
            "t5_tokens": self.config.text.t5_tokens,
            "checkpoint": str(self.checkpoint.absolute()),
            "weights": self._weights(stage),
            "files": {text: _digest(text) for text in self._files(stage)},
            "size": self.size(stage),
            "versions": {name: version(name) for name in ("show1-jax", "jax", "flax")},
            "platform": jax.default_backend(),
        }

    def _weights(self, stage: str) -> str:
        """Tells the networks that a stage uses from others."""
        own = self.folders[stage]
        text = own if stage == "translation" else t5_folder(self.folders)
        networks = fingerprint(own.folder, ("unet", "vae"))
        return f"{networks}-{fingerprint(text.folder, ('text_encoder', 'tokenizer'))}"

    def _files(self, stage: str) -> list[str]:
        """Of adapters and noise."""
        adapters = self.config[stage].get("adapters", ())
        files = [str(parse_adapter(text)[0]) for text in adapters]
        return files if self.noise_of(stage) is None else [*files, self.config.from_noise]

    def check_inputs(self, items: Collection[int], results: Results) -> None:
        """Raises InputError if all of these items lack a result that a stage starts from."""
        for stage in self.stages:
            for needed in self.inputs(stage):
                there = (results.has(item, needed) for item in items)
                if needed not in self.stages and not any(there):
                    raise InputError(
                        f"{stage} starts from the result of {needed}, which is not there: "
                        "run that stage first, or name the folder that holds it"
                    )

    def _sample(
        self,
        stage: str,
        params: dict[str, Any],
        texts: Texts,
        prompts: Sequence[str],
        items: list[int],
        seeds: Sequence[int],
        results: Results,
        progress: Progress | None,
    ) -> jax.Array:
        """Runs one stage on one batch; see the stages' own `sample` functions."""
        config, denoiser, folder = self.config[stage], self.denoisers[stage], self.folders[stage]
        embeddings = texts.clip if stage == "translation" else texts.t5
        assert embeddings is not None
        # The negative prompt's first.
        pairs = np.stack([[embeddings[None], embeddings[prompt]] for prompt in prompts], axis=1)
        unet, text = params["unet"], put_batch(pairs, axis=1)
        own_seeds = put_batch(np.array([seeds[item] for item in items], np.uint32))
        guidance = jnp.float32(config.guidance)
        size = (self.config.super_resolution.height, self.config.super_resolution.width)
        noise = self.noise_of(stage)
        if noise is not None:
            given = (text, own_seeds, guidance, noise, progress)
            return self.put_together(stage, inversion.sample(denoiser, unet, *given), params)

        def made_by(stage: str) -> np.ndarray:
            return np.stack([self._result(results, item, stage) for item in items])

        match stage:
            case "keyframes":
                shape = (config.frames, config.height, config.width)
                return keyframes.sample(denoiser, unet, text, own_seeds, guidance, shape, progress)
            case "interpolation":
                return interpolation.sample(
                    denoiser, unet, text, own_seeds, guidance,
                    put_batch(made_by("keyframes")), config.frames_per_gap, progress,
                )  # fmt: skip
            case "first_frame":
                return super_resolution.sample_first_frame(
                    denoiser, unet, text, own_seeds, guidance,
                    put_batch(made_by("interpolation")[:, 0]), size,
                    jnp.int32(config.noise_level), folder.noise_schedule(), progress,
                )  # fmt: skip
            case "super_resolution":
                video = put_batch(made_by("interpolation"))
                first = self._first_frames(items, results, video[:, 0], size)
                return super_resolution.sample(
                    denoiser, unet, text, own_seeds, guidance, video, first, config.window,
                    jnp.int32(config.noise_level), folder.noise_schedule(), progress,
                )  # fmt: skip
            case "translation":
                large = [
                    from_uint8(resize_uint8(to_uint8(clip), config.height, config.width))
                    for clip in made_by("super_resolution")
                ]
                assert self.vae is not None
                return translation.sample(
                    denoiser, self.vae, unet, params["vae"], text, own_seeds, guidance,
                    put_batch(np.stack(large)), config.strength, config.vae_frames, progress,
                )  # fmt: skip
        raise AssertionError(stage)

    def put_together(self, stage: str, pieces: jax.Array, params: dict[str, Any]) -> jax.Array:
        """A stage's results of their pieces.

        Args:
          stage: which.
          pieces: `(batch, pieces, frames, height, width, channels)`; see `inversion.sample`.
          params: of the stage.

        Returns:
          `(batch, frames, height, width, 3)`; of the first frame `(batch, height, width, 3)`.
        """
        match stage:
            case "interpolation":
                return interpolation.join(pieces)
            case "first_frame":
                return pieces[:, 0, 0]
            case "super_resolution":
                return super_resolution.put_together(pieces, clip_frames(self.config))
            case "translation":
                assert self.vae is not None
                at_once = self.config.translation.vae_frames
                return translation.decode(self.vae, params["vae"], pieces[:, 0], at_once)
        return pieces[:, 0]

    def _first_frames(
        self, items: list[int], results: Results, small: jax.Array, size: tuple[int, int]
    ) -> jax.Array:
        """The large first frames, upscaled bilinearly for items that have none."""
        frames = []
        for item, frame in zip(items, small, strict=True):
            if not results.has(item, "first_frame"):
                logging.warning("No first_frame of item %d: it is upscaled bilinearly.", item)
                frames.append(super_resolution.upsample(frame, *size))
                continue
            frames.append(jnp.asarray(self._result(results, item, "first_frame")))
        return jnp.stack(frames)


def check_text(prompt: str) -> None:
    """Raises InputError if a prompt cannot be encoded."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError("its prompt is no text: it has bytes or surrogates beyond UTF-8") from None


def clip_frames(config: ConfigDict) -> int:
    """How many frames there are between and with the keyframes."""
    return (config.keyframes.frames - 1) * (config.interpolation.frames_per_gap - 1) + 1


def sample_size(
    config: ConfigDict, stage: str, batch: int, vae: VAEConfig | None = None
) -> tuple[int, int, int, int, int]:
    """The shape `(batch, frames, height, width, channels)` of what a stage denoises together.

    Args:
      config: as in `configs/show1.py`.
      stage: one of `STAGES`.
      batch: how many clips; of interpolation each has several gaps.
      vae: of translation.
    """
    keyframes, frames = config.keyframes, clip_frames(config)
    large = (config.super_resolution.height, config.super_resolution.width, 3)
    if stage == "translation":
        assert vae is not None
        section = config.translation
        latents = (section.height // vae.downscale, section.width // vae.downscale)
        return batch, frames, *latents, vae.latent_channels
    small, gap = (keyframes.height, keyframes.width, 3), config.interpolation.frames_per_gap
    return {
        "keyframes": (batch, keyframes.frames, *small),
        "interpolation": (batch * (keyframes.frames - 1), gap, *small),
        "first_frame": (batch, 1, *large),
        "super_resolution": (batch, min(config.super_resolution.window, frames), *large),
    }[stage]


def _size(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _digest(file: str) -> str:
    return hashlib.sha256(local_path(file).read_bytes()).hexdigest()[:16]


def _batches(items: Sequence[Any], size: int) -> Iterator[list[tuple[Any, bool]]]:
    """Batches of exactly `size`; the last one repeats its last item, marked as not wanted."""
    for start in range(0, len(items), size):
        batch = [(item, True) for item in items[start : start + size]]
        yield batch + [(batch[-1][0], False)] * (size - len(batch))


def _warn_of_differences(stage: str, expected: ConfigDict | None, found: Any) -> None:
    """Says where a checkpoint's settings differ from the config's."""
    if expected is None:
        return
    actual = flatten_dict(dataclasses.asdict(found), sep=".")
    different = [
        f"{key} is {actual.get(key)}, not {value}"
        for key, value in flatten_dict(expected.to_dict(), sep=".").items()
        if actual.get(key) != value
    ]
    if different:
        logging.warning(
            "The checkpoint's %s differs from the config: %s.", stage, "; ".join(different)
        )
