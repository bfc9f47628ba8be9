"""The dataset of moving shapes: captioned clips whose attributes can all be measured.

It stores only the parameters of scenes (see `scenes`). They are drawn at the resolution and frame
rate that a stage needs, which is faster than decoding a video.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from show1_jax.data.clip import ClipSpec
from show1_jax.errors import InputError
from show1_jax.shapes.drawing import render
from show1_jax.shapes.scenes import (
    ATTRIBUTES,
    DURATION,
    SPEEDS,
    TEMPLATES,
    Combination,
    Scene,
    caption,
    combinations,
    max_length,
    motions,
    random_scene,
    split_of,
)

CAPTIONS = 3  # of each clip, in different words
NUMBERS = ("x", "y", "length", "turn", "shade")  # of a scene


class MovingShapesConfig(tfds.core.BuilderConfig):
    """The number of clips in each split."""

    def __init__(
        self, train: int = 20_000, validation: int = 1_000, test: int = 1_000, looks: int = 1_000
    ):
        """Raises InputError if a split would be empty."""
        self.clips = {"train": train, "validation": validation, "test": test, "looks": looks}
        if min(self.clips.values()) < 1:
            found = ", ".join(f"{name} {count}" for name, count in self.clips.items())
            raise InputError(f"the splits have {found} clips, but each needs at least 1")
        super().__init__(name="_".join(map(str, self.clips.values())))


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Scenes and captions. Each split has its own combinations, which are equally frequent."""

    VERSION = tfds.core.Version("7.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "7.0.0": "Motions that are not straight, wider ranges of places and speeds, shades of "
        "colors, and several captions a clip.",
        "6.0.0": "Test combinations and looks are held out; validation has the combinations "
        "that were held_out.",
        "5.0.0": "86 combinations are held out.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            name: tfds.features.ClassLabel(names=list(values))
            for name, values in ATTRIBUTES.items()
            if name != "speed"
        }
        features = {
            "name": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            **labels,
            **dict.fromkeys(NUMBERS, np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {
            split: self._generate_examples(split, clips)
            for split, clips in self.builder_config.clips.items()
        }

    def _generate_examples(self, split: str, clips: int) -> Iterator[tuple[int, dict[str, Any]]]:
        allowed = [c for c in combinations() if split_of(c) == split]
        seed = list(self.builder_config.clips).index(split)
        order = np.random.default_rng(seed).permutation(len(allowed))
        for index in range(clips):
            rng = np.random.default_rng((seed, index))
            combination = allowed[order[index % len(allowed)]]
            known = motions(combination.direction)
            scene = random_scene(combination._replace(motion=known[rng.integers(len(known))]), rng)
            own = scene.combination._asdict()
            del own["speed"]
            yield (
                index,
                {
                    "name": f"{split}-{index}",
                    "captions": _captions(scene, rng),
                    **own,
                    **{name: getattr(scene, name) for name in NUMBERS},
                },
            )


def _captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Captions of a scene in different words, of which some name its speed if there is a word."""
    speed = speed_of(scene)
    chosen = rng.permutation(len(TEMPLATES))[:CAPTIONS]
    named = [scene.combination._replace(speed=speed), scene.combination]
    return [caption(named[rng.integers(2)], int(template)) for template in chosen]


def speed_of(scene: Scene) -> str:
    """Returns the word for a scene's speed; "" if there is none."""
    share = scene.length / max_length(scene.combination, scene.turn)
    words = (word for word, (low, high) in SPEEDS.items() if word and low <= share <= high)
    return next(words, "")


def captions() -> Iterator[str]:
    """Yields all captions that clips of training and validation can have."""
    read = [one for one in combinations() if split_of(one) in ("train", "validation")]
    for combination, template in itertools.product(read, range(len(TEMPLATES))):
        for motion, speed in itertools.product(motions(combination.direction), SPEEDS):
            yield caption(combination._replace(motion=motion, speed=speed), template)


def scene_of(record: Mapping[str, Any]) -> Scene:
    """Returns the scene of a stored record."""
    names = {name: list(ATTRIBUTES[name])[record[name]] for name in ATTRIBUTES if name != "speed"}
    return Scene(Combination(**names), *(float(record[name]) for name in NUMBERS))


def read(record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None) -> np.ndarray:
    """Draws a stored record with the size and timing of `spec`.

    Returns:
      `(frames, height, width, 3)` uint8.

    Raises:
      UnusableClip: if `spec` needs more than `DURATION`.
    """
    return render(scene_of(record), spec.times(DURATION, rng), spec.height, spec.width)
