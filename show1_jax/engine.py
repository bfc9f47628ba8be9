"""Runs any sequence of stages, each of which starts from what earlier ones made.

Stages run one after the other for all prompts, so that the weights of one alone need be in memory.
What a stage made is kept by the caller (`Results`), and may come from an earlier run.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from show1_jax.adapters.apply import adapted
from show1_jax.errors import LESS_MEMORY_SAMPLING, InputError, out_of_memory_as_error
from show1_jax.loading import load_stages, warn_of_differences
from show1_jax.parallel.mesh import batch_parts, make_mesh, rounded_up
from show1_jax.parallel.sharding import put_batch
from show1_jax.paths import Checkpoint
from show1_jax.provenance import settings
from show1_jax.stages import Stage, inversion
from show1_jax.stages.results import Results, checked
from show1_jax.stages.sampling import Call, Progress, in_parts
from show1_jax.text.prompts import Texts, check_text, encode_prompts
from show1_jax.text.tokenizers import Tokenizer, token_count
from show1_jax.weights import Weights


class StageProgress(Protocol):
    """A callback that shows how far a run is, such as `progress.Progress.update`."""

    def __call__(self, stage: str, done: int, steps: int, doing: str = "", /) -> None:
        """Receives the name of a stage or an encoder, then what `sampling.Progress` receives."""


class Preview(Protocol):
    """A callback that may look at what is being denoised."""

    def __call__(self, stage: str, items: Sequence[int], look: Callable[[], np.ndarray], /) -> None:
        """Receives the items of a batch and a function that makes what is to be seen of them.

        That takes some time, most of it in stages that denoise latents; see `Stage.preview` for
        what it returns. It can be called until the callback returns.
        """


class Made(NamedTuple):
    """A result that was just made: `(frames, height, width, 3)` fp32, or one frame."""

    item: int
    stage: str
    frames: np.ndarray


@dataclasses.dataclass
class _Run:
    """What one run of the cascade is given.

    Attributes:
      prompts: one for each item.
      seeds: one for each item.
      results: where results are kept.
      progress: is told what goes on.
      preview: may look at what is being denoised.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    results: Results
    progress: StageProgress | None
    preview: Preview | None = None

    def of_stage(self, stage: str) -> Progress | None:
        """The progress of one stage."""
        return functools.partial(self.progress, stage) if self.progress else None

    def watch(
        self, stage: Stage, items: Sequence[int], params: Mapping[str, Any]
    ) -> Callable[[jax.Array], None] | None:
        """Shows `preview` what is being denoised of items; see `Call.watch`."""
        preview = self.preview
        if preview is None:
            return None
        return lambda clean: preview(
            stage.name, items, lambda: np.asarray(stage.preview(clean, params))
        )


class Engine:
    """Runs stages, each of which starts from what earlier ones made.

    Attributes:
      config: as in `configs/show1.py`.
      loaded: the stages that are ready to run.
      stages: by name, those to run, in order.
      samplers: by stage, network and solver.
      weights: reads networks.
      mesh: the devices.
      batch_size: clips sampled together.
    """

    def __init__(
        self,
        config: ConfigDict,
        checkpoint: Checkpoint,
        stages: Sequence[str] | None = None,
        devices: Sequence[jax.Device] | None = None,
        *,
        weights: Weights | None = None,
        noise: inversion.Noise | None = None,
    ):
        """Reads every configuration and checks that sizes fit; no weight is read.

        Args:
          config: as in `configs/show1.py`.
          checkpoint: a converted checkpoint, or several, of which later ones override the stages
            of earlier ones.
          stages: the stages to run; None for all that the checkpoint has.
          devices: to lay out as `config.mesh` says; None for all.
          weights: networks of the same checkpoint that may be in memory already.
          noise: what a stage starts from; None for what the config names.

        Raises:
          InputError: if a stage is unknown or not there, a size does not fit, or there
            are adapters for a stage that is not run.
        """
        self.config = config
        self.loaded = loaded = load_stages(config, checkpoint, stages, noise)
        self.stages, self.samplers = loaded.stages, loaded.samplers
        self.weights = weights or Weights(loaded.folders, loaded.dtype)
        if config.batch_size < 1:
            raise InputError(f"batch_size is {config.batch_size}, but must be at least 1")
        self.mesh = make_mesh(config.mesh, devices)
        self.batch_size = rounded_up(config.batch_size, batch_parts(self.mesh))

    def encode(self, prompts: Sequence[str], progress: StageProgress | None = None) -> Texts:
        """Encodes prompts with the encoders that the stages need; under the mesh.

        Args:
          prompts: the texts.
          progress: shows how far the encoders are.

        Raises:
          InputError: if the checkpoint lacks an encoder or its tokenizer, a prompt is no text,
            or memory is short.
        """
        text = self.config.text

        def embed(name: str, texts: Sequence[str]) -> np.ndarray:
            tokens = token_count(name, text.t5_tokens)
            encoder = self.weights.encoder(name, tokens, progress)
            warn_of_differences(name, text.get(name), encoder.module.config)
            own_progress = functools.partial(progress, name) if progress else None
            return encoder(texts, self.batch_size, own_progress)

        return encode_prompts(embed, list(self.stages.values()), prompts, text.clean_captions)

    def tokenizers(self) -> list[Tokenizer]:
        """The tokenizers of the encoders that the stages need; no network is read.

        Raises:
          InputError: if the checkpoint lacks one, or it is damaged.
        """
        names = dict.fromkeys(stage.encoder for stage in self.stages.values())
        tokens = self.config.text.t5_tokens
        return [self.weights.tokenizer(name, token_count(name, tokens)) for name in names]

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
          progress: shows what is read, compiled and run.
          items: which of them to make; None for all.

        Raises:
          InputError: if there is not one seed for each prompt, an encoder is missing, memory is
            short, or a result cannot be written.
        """
        for _ in self.stream(prompts, seeds, results, progress, items):
            pass

    def stream(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        results: Results,
        progress: StageProgress | None = None,
        items: Iterable[int] | None = None,
        preview: Preview | None = None,
    ) -> Generator[Made]:
        """`run`, but yields each result as it is made; the other arguments and errors are the same.

        Args:
          prompts: as there.
          seeds: as there.
          results: as there.
          progress: as there.
          items: as there.
          preview: may look at what is being denoised.
        """
        if isinstance(prompts, str):
            raise InputError("the prompts are one text: give a list of them")
        if len(prompts) != len(seeds):
            raise InputError(
                f"there are {len(prompts)} prompts and {len(seeds)} seeds: give each its own"
            )
        run = _Run(prompts, seeds, results, progress, preview)
        made_by = self.made_by
        # An item that lacks a stage may come to lack later ones, but no other item does.
        left = [
            item
            for item in (range(len(prompts)) if items is None else items)
            if not all(results.done(item, name, made_by[name]) for name in self.stages)
            and self._is_text(prompts[item], item, results)
        ]
        if not left:
            return
        # The mesh is set for each piece of work alone: a generator must not leave it set.
        with jax.set_mesh(self.mesh):
            texts = self.encode([prompts[item] for item in left], progress)
        for name in self.stages:
            missing = [item for item in left if not results.done(item, name, made_by[name])]
            if not missing:
                continue
            failed: set[int] = set()
            yield from self._stream_stage(name, missing, texts, run, failed)
            left = [item for item in left if item not in failed]

    def _stream_stage(
        self, name: str, missing: Sequence[int], texts: Texts, run: _Run, failed: set[int]
    ) -> Iterator[Made]:
        """Runs one stage on items; adds those that fail to `failed`."""
        results, settings = run.results, self.made_by[name]
        failed |= set(self._unusable(name, missing, results))
        usable = [item for item in missing if item not in failed]
        params: Mapping[str, Any] = {}
        if usable:
            with jax.set_mesh(self.mesh):
                params = self.params(name, run.progress)
        batches = list(_batches(usable, self.batch_size))
        for i, batch in enumerate(batches):
            items = [item for item, _ in batch]
            report = in_parts(run.of_stage(name), i, len(batches))
            with jax.set_mesh(self.mesh), out_of_memory_as_error(name, LESS_MEMORY_SAMPLING):
                try:
                    call = self._call(name, params, texts, items, run, report)
                    made = np.asarray(self._sample(self.stages[name], call, items, results))
                except InputError as error:
                    for item in dict.fromkeys(items):
                        failed.add(item)
                        results.fail(item, name, error)
                    continue
            for row, (item, wanted) in zip(made, batch, strict=True):
                if not wanted:
                    continue
                if np.isfinite(row).all():
                    own = row.copy()  # of a view, which would keep the whole batch
                    results.save(item, name, own, settings)
                    yield Made(item, name, own)
                else:
                    failed.add(item)
                    results.fail(item, name, InputError("the result is not finite"))

    def _is_text(self, prompt: str, item: int, results: Results) -> bool:
        """Whether a prompt can be encoded; one that cannot fails, and the others go on."""
        try:
            check_text(prompt)
        except InputError as error:
            results.fail(item, next(iter(self.stages)), error)
            return False
        return True

    def params(self, stage: str, progress: StageProgress | None = None) -> Mapping[str, Any]:
        """The parameters of a stage's networks, its denoiser's with adapters; under the mesh.

        Raises:
          InputError: if they cannot be read, or memory is short.
        """
        own = self.stages[stage]
        modules = {"unet": self.samplers[stage].unet}
        modules |= {name: getattr(own, name) for name in own.networks if name != "unet"}
        params = self.weights.params(stage, modules, progress)
        if not self.loaded.adapters[stage]:
            return params
        with out_of_memory_as_error(stage, LESS_MEMORY_SAMPLING):
            return {**params, "unet": adapted(params["unet"], self.loaded.adapters[stage])}

    def _unusable(self, stage: str, items: Sequence[int], results: Results) -> Iterator[int]:
        """Items of which a result that the stage starts from is missing or damaged."""
        uses = self.loaded.known[stage].uses if self.loaded.noise_of(stage) is None else ()
        for item in items:
            try:
                for needed in self.loaded.inputs(stage):
                    if not results.has(item, needed):
                        raise InputError(
                            f"{stage} starts from the result of {needed}, which it lacks"
                        )
                    self._result(results, item, needed)
                for used in uses:
                    if results.has(item, used):
                        self._result(results, item, used)
            except InputError as error:
                results.fail(item, stage, error)
                yield item

    def _result(self, results: Results, item: int, stage: str) -> np.ndarray:
        """A result that another stage starts from; see `checked`."""
        return checked(results.load(item, stage), stage, self.loaded.known[stage].shape)

    @functools.cached_property
    def made_by(self) -> dict[str, dict[str, Any]]:
        """By stage, what reproduces its result; see `provenance.settings`."""
        return {
            name: settings(self.config.text, self.loaded, stage)
            for name, stage in self.stages.items()
        }

    def check_inputs(self, items: Collection[int], results: Results) -> None:
        """Raises InputError if all of these items lack a result that a stage starts from."""
        for stage in self.stages:
            for needed in self.loaded.inputs(stage):
                there = (results.has(item, needed) for item in items)
                if needed not in self.stages and not any(there):
                    raise InputError(
                        f"{stage} starts from the result of {needed}, which is not there: "
                        "run that stage first, or name the folder that holds it"
                    )

    def _call(
        self,
        stage: str,
        params: Mapping[str, Any],
        texts: Texts,
        items: Sequence[int],
        run: _Run,
        progress: Progress | None,
    ) -> Call:
        own = self.stages[stage]
        prompts = [run.prompts[item] for item in items]
        return Call(
            self.samplers[stage],
            params,
            put_batch(texts.pairs(own, prompts), axis=1),
            put_batch(np.array([run.seeds[item] for item in items], np.uint32)),
            jnp.float32(own.guidance),
            progress,
            run.watch(own, items, params),
        )

    def _sample(
        self, stage: Stage, call: Call, items: Sequence[int], results: Results
    ) -> jax.Array:
        """Runs one stage on one batch."""
        noise = self.loaded.noise_of(stage.name)
        if noise is not None:
            return stage.join(inversion.sample(call, noise), call.params)
        given = {item: self._inputs(stage, item, results) for item in dict.fromkeys(items)}
        names = (*stage.needs, *stage.uses)
        inputs = stage.prepare({n: np.stack([given[item][n] for item in items]) for n in names})
        return stage.sample(call, {name: put_batch(rows) for name, rows in inputs.items()})

    def _inputs(self, stage: Stage, item: int, results: Results) -> dict[str, np.ndarray]:
        """What a stage starts from for one item."""
        own = {needed: self._result(results, item, needed) for needed in stage.needs}
        for used in stage.uses:
            if results.has(item, used):
                own[used] = self._result(results, item, used)
            else:
                logging.warning("No %s of item %d: it is %s.", used, item, stage.fallback_is)
                own[used] = stage.fallback(used, own)
        return own


def _batches(items: Sequence[Any], size: int) -> Iterator[list[tuple[Any, bool]]]:
    """Batches of exactly `size`; the last one repeats its last item, marked as not wanted."""
    for start in range(0, len(items), size):
        batch = [(item, True) for item in items[start : start + size]]
        yield batch + [(batch[-1][0], False)] * (size - len(batch))
