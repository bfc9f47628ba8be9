"""The page's form: what it holds, as a request, and filled in again from a video."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import ValidationError

from show1_jax.app.jobs import Job
from show1_jax.app.requests import Refused, VideoRequest, why_invalid

Defaults = Mapping[str, tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A video whose earlier stages are taken.

    Attributes:
      id: of the video.
      stage: the last stage that is taken.
    """

    id: str
    stage: str


@dataclasses.dataclass(frozen=True)
class Values:
    """What the form holds; None and "" are empty fields.

    Attributes:
      prompt: what to show.
      random: whether the seed is chosen at random.
      seed: of the first video.
      count: how many videos.
      stages: the stages to run, in any order.
      negative: the negative prompt; "" for the checkpoint's.
      adapters: the names of adapters.
      weight: of all of them.
      steps: of each stage.
      guidance: of each stage.
    """

    prompt: str
    random: bool
    seed: float | None
    count: float | None
    stages: Sequence[str]
    negative: str
    adapters: Sequence[str]
    weight: float | None
    steps: Mapping[str, float | None]
    guidance: Mapping[str, float | None]

    @classmethod
    def of_flat(cls, flat: Sequence[Any], stages: Sequence[str]) -> Self:
        """The values of the form's fields in their order: steps and guidance come last."""
        own, numbers = flat[: -2 * len(stages)], flat[-2 * len(stages) :]
        fields: dict[str, Any] = dict(zip(_OWN, own, strict=True))
        fields["steps"] = dict(zip(stages, numbers[::2], strict=True))
        fields["guidance"] = dict(zip(stages, numbers[1::2], strict=True))
        return cls(**fields)

    def flat(self) -> list[Any]:
        """The inverse of `of_flat`."""
        return [getattr(self, name) for name in _OWN] + [
            number for name in self.steps for number in (self.steps[name], self.guidance[name])
        ]

    @classmethod
    def of_job(cls, job: Job, defaults: Defaults) -> Self:
        """The settings of a video, with its seed."""
        settings = job.settings
        steps, guidance = dict(settings.steps), dict(settings.guidance)
        weights = [weight for _, weight in settings.adapters]
        return cls(
            prompt=job.prompt,
            random=False,
            seed=job.seed,
            count=1,
            stages=list(settings.stages),
            negative=settings.negative_prompt or "",
            adapters=[name for name, _ in settings.adapters],
            weight=weights[0] if weights else 1.0,
            steps={name: steps.get(name, own) for name, (own, _) in defaults.items()},
            guidance={name: guidance.get(name, own) for name, (_, own) in defaults.items()},
        )

    def request(self, defaults: Defaults, source: Source | None) -> VideoRequest:
        """What is asked for.

        Args:
          defaults: steps and guidance of each stage that the checkpoint has.
          source: a video to go on from; its prompt and seed are taken.

        Raises:
          Refused: if a value is wrong.
        """
        stages = [name for name in defaults if name in self.stages]
        if not stages:
            raise Refused("choose at least one stage to run")
        steps, guidance = (
            {name: own[name] for name in stages if own[name] is not None}
            for own in (self.steps, self.guidance)
        )
        fields: dict[str, Any] = {
            "stages": stages,
            "steps": steps or None,
            "guidance": guidance or None,
            "negative_prompt": self.negative or None,
            "adapters": [
                {"name": name, "weight": 1.0 if self.weight is None else self.weight}
                for name in self.adapters
            ],
        }
        if source is not None:
            fields["source"] = source.id
        else:
            if not self.random and self.seed is None:
                raise Refused("give a seed, or have one chosen at random")
            fields["prompt"] = self.prompt
            fields["seed"] = None if self.random else self.seed
            fields["n"] = 1 if self.count is None else self.count
        return checked_request(fields)


_OWN = [field.name for field in dataclasses.fields(Values)][:-2]  # all but steps and guidance


def checked_request(fields: Mapping[str, Any]) -> VideoRequest:
    """A request.

    Raises:
      Refused: if a field is wrong, in one sentence.
    """
    if not (fields.get("source") or str(fields.get("prompt") or "").strip()):
        raise Refused("give a prompt")
    try:
        return VideoRequest(**fields)
    except ValidationError as error:
        raise Refused(why_invalid(error.errors()[0])) from None
