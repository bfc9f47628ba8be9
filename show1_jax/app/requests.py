"""What clients ask for, as they say it and as it is made."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from show1_jax.arguments import MAX_SEED

MAX_PROMPT = 2_000  # characters; encoders read far less
MAX_VIDEOS = 16  # of one request
MAX_STEPS = 1_000
MAX_GUIDANCE = 100.0

Number = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Scale = Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
Steps = Number | dict[str, Number]
Guidance = Scale | dict[str, Scale]
ADVICE = {
    "steps": f"give a whole number from 1 to {MAX_STEPS}, or such numbers by stage",
    "guidance": f"give a number from 0 to {MAX_GUIDANCE:g}, or such numbers by stage",
    "adapters": 'give a list such as [{"name": "own.safetensors", "weight": 1.0}]',
    "the body": "it is no JSON object; send one, with Content-Type: application/json",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AdapterChoice(_Strict):
    """An uploaded adapter, and how much of it."""

    name: str = Field(description="as it was uploaded")
    weight: float = Field(1.0, ge=-10, le=10, allow_inf_nan=False)


class VideoRequest(_Strict):
    """One or several videos to make."""

    prompt: str | None = Field(
        None, min_length=1, max_length=MAX_PROMPT,
        description="what to show; needed unless `source` is given",
        examples=["a small red circle moving left on a black background"],
    )  # fmt: skip
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, examples=[0],
        description="of the first video, the others' follow; random if left out",
    )  # fmt: skip
    n: int = Field(1, ge=1, le=MAX_VIDEOS, description="how many videos, each with its own seed")
    stages: list[str] | None = Field(
        None, min_length=1, description="the stages to run; all if left out", examples=[None]
    )
    steps: Steps | None = Field(
        None, description="solver steps, of all stages or by stage", examples=[None]
    )
    guidance: Guidance | None = Field(
        None, description="guidance scales, of all stages or by stage", examples=[None]
    )
    negative_prompt: str | None = Field(
        None, max_length=MAX_PROMPT, examples=[None],
        description="what guidance leads away from, in all stages",
    )  # fmt: skip
    adapters: list[AdapterChoice] = Field([], max_length=8, examples=[[]])
    source: str | None = Field(
        None, examples=[None],
        description="the id of a video whose prompt, seed and earlier stages are taken",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """How videos are made; those with the same settings can be sampled together.

    Attributes:
      stages: the stages to run, in order.
      steps: solver steps of each.
      guidance: the guidance scale of each.
      negative_prompt: what guidance leads away from in all stages; None for the config's.
      adapters: names and weights.
    """

    stages: tuple[str, ...]
    steps: tuple[tuple[str, int], ...] = ()
    guidance: tuple[tuple[str, float], ...] = ()
    negative_prompt: str | None = None
    adapters: tuple[tuple[str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The settings as a request would say them."""
        return {
            "stages": list(self.stages),
            "steps": dict(self.steps),
            "guidance": dict(self.guidance),
            "negative_prompt": self.negative_prompt,
            "adapters": [{"name": name, "weight": weight} for name, weight in self.adapters],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
          LookupError, TypeError, ValueError: if the fields are not such.
        """
        return cls(
            tuple(map(str, fields["stages"])),
            tuple((str(name), int(value)) for name, value in fields["steps"].items()),
            tuple((str(name), float(value)) for name, value in fields["guidance"].items()),
            None if fields["negative_prompt"] is None else str(fields["negative_prompt"]),
            tuple((str(own["name"]), float(own["weight"])) for own in fields["adapters"]),
        )


class Refused(Exception):
    """A request that is not carried out.

    Attributes:
      status: of HTTP.
      retry_after: in how many seconds it may be; None for never.
    """

    def __init__(self, message: str, status: int = 422, retry_after: int | None = None):
        """One clear sentence, and what HTTP says."""
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


def why_invalid(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as one sentence."""
    place = [str(part) for part in error["loc"] if part not in ("body", "query")]
    what = (place[0] if place else "the body")[:60]
    if error["type"] == "extra_forbidden":
        return f"there is no field {what!r}"
    return f"{what}: " + ADVICE.get(what, f"{error['msg'][0].lower()}{error['msg'][1:200]}")
