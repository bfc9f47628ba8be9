"""From settings to an engine that makes videos by them, and what a checkpoint can do."""

import collections
import copy
import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import Any

from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax import stages as known_stages
from show1_jax.adapters.files import load_adapter
from show1_jax.app.requests import Refused, Settings, VideoRequest
from show1_jax.cascade import Cascade
from show1_jax.checkpoints.networks import abstract_params
from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.paths import Checkpoint
from show1_jax.text.cleaning import cleaner
from show1_jax.text.tokenizers import Tokenizer

MAX_ENGINES = 8  # that are kept


class Studio:
    """Makes engines; those of the same settings are made once.

    Attributes:
      cascade: the checkpoint.
      adapters: the folder of uploaded adapters.
    """

    def __init__(self, config: ConfigDict, checkpoint: Checkpoint, adapters: Path) -> None:
        """Checks every setting; no weight is read.

        Args:
          config: as in `configs/show1.py`.
          checkpoint: a converted checkpoint, or several; see `Engine`.
          adapters: the folder of uploaded adapters.

        Raises:
          InputError: if a setting is wrong, or a network is missing.
        """
        self.cascade, self.adapters = Cascade(config, checkpoint), adapters
        self._config = copy.deepcopy(config)
        self._making = threading.Lock()
        self._engines: collections.OrderedDict[tuple[Settings, int], Engine] = (
            collections.OrderedDict()
        )

    @property
    def stages(self) -> list[str]:
        """The names of the stages that the checkpoint has."""
        return self.cascade.stages

    @property
    def defaults(self) -> dict[str, tuple[int, float]]:
        """Solver steps and guidance scale of each stage."""
        return {
            name: (int(self._config[name].steps), float(self._config[name].guidance))
            for name in self.stages
        }

    @property
    def examples(self) -> list[str]:
        """Prompts that the checkpoint knows."""
        return list(self._config.examples)

    @functools.cached_property
    def batch_sizes(self) -> list[int]:
        """How many videos may be sampled together: few sizes, so that few programs are compiled.

        They are what the mesh divides, doubled again and again, up to the config's.
        """
        largest = self.cascade.engine().batch_size
        sizes = [self.cascade.engine(batch_size=1).batch_size]
        while sizes[-1] * 2 < largest:
            sizes.append(sizes[-1] * 2)
        return sorted({*sizes, largest})

    def settings(self, request: VideoRequest) -> Settings:
        """What a request asks for, checked.

        Raises:
          Refused: if it cannot be made.
        """
        try:
            stages = request.stages or self.stages
            for name in stages:
                known_stages.by_name(name)
                if name not in self.stages:
                    raise InputError(f"the checkpoint has no {name}")
            settings = Settings(
                tuple(name for name in self.stages if name in stages),
                self._by_stage("steps", request.steps, stages),
                self._by_stage("guidance", request.guidance, stages),
                request.negative_prompt,
                tuple((own.name, own.weight) for own in request.adapters),
            )
            for name, _ in settings.adapters:
                if name not in self.adapter_names():
                    raise InputError(f"there is no adapter {name!r:.40}: upload it first")
            self.engine(dataclasses.replace(settings, adapters=()), 1)
        except InputError as error:
            raise Refused(str(error)) from None
        return settings

    def engine(self, settings: Settings, batch_size: int) -> Engine:
        """The engine for some settings; only those without adapters are kept.

        Raises:
          InputError: if a setting is wrong.
        """
        key = (settings, batch_size)
        with self._making:  # by threads that ask, and the worker
            engine = self._engines.pop(key, None) or self._new(settings, batch_size)
            if not settings.adapters:
                self._engines[key] = engine
            while len(self._engines) > MAX_ENGINES:
                self._engines.popitem(last=False)
        return engine

    def _new(self, settings: Settings, batch_size: int) -> Engine:
        negative = settings.negative_prompt
        return self.cascade.engine(
            settings.stages,
            steps=dict(settings.steps),
            guidance=dict(settings.guidance),
            negative_prompts={} if negative is None else dict.fromkeys(settings.stages, negative),
            adapters=[f"{self.adapters / name}={weight}" for name, weight in settings.adapters],
            batch_size=batch_size,
        )

    def missing(self, settings: Settings, there: Sequence[str]) -> str | None:
        """A stage whose result others start from, but that is neither run nor there."""
        engine = self.engine(dataclasses.replace(settings, adapters=()), 1)
        for name in settings.stages:
            for needed in engine.loaded.inputs(name):
                if needed not in settings.stages and needed not in there:
                    return needed
        return None

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the text encoders do not know."""
        clean = cleaner(self._config.text.clean_captions)
        words = (word for each in self._tokenizers for word in each.unknown(clean(prompt)))
        return list(dict.fromkeys(words))

    @functools.cached_property
    def _tokenizers(self) -> list[Tokenizer]:
        return self.cascade.engine().tokenizers()

    def adapter_names(self) -> list[str]:
        """The adapters that were uploaded."""
        return sorted(path.name for path in self.adapters.glob("*.safetensors"))

    def check_adapter(self, path: Path) -> None:
        """Raises InputError if a file is no adapter of the first stage."""
        sampler = self.cascade.engine().samplers[self.stages[0]]
        load_adapter(path, abstract_params(sampler.unet))

    def _by_stage(
        self, name: str, values: Any, stages: Sequence[str]
    ) -> tuple[tuple[str, Any], ...]:
        """The values of all stages to run, in order; the config's where none is given.

        They are written down with a job, which is then made with them whatever the config is later.
        """
        if not isinstance(values, dict):
            values = {} if values is None else dict.fromkeys(stages, values)
        for stage in values:
            known_stages.by_name(stage)
            if stage not in stages:
                raise InputError(f"{name} is given for {stage}, which is not run")
        kind = int if name == "steps" else float
        return tuple(
            (stage, kind(values.get(stage, self._config[stage][name])))
            for stage in self.stages
            if stage in stages
        )
