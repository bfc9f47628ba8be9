"""A run's clips: dataset, and the pipelines over it."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import flags, logging
from etils.epath import Path
from flax.traverse_util import flatten_dict
from google.protobuf.json_format import ParseError
from ml_collections import ConfigDict

from show1_jax.data import clips
from show1_jax.data.clip import ClipSpec
from show1_jax.data.clips import Clips, Selection, open_clips
from show1_jax.data.filters import read_filters
from show1_jax.data.index import Team
from show1_jax.data.pipeline import Read, Source, damaged, make_pipeline, open_split
from show1_jax.errors import InputError
from show1_jax.files import cache_folder
from show1_jax.parallel import hosts
from show1_jax.parallel.hosts import fetch
from show1_jax.parallel.sharding import own_rows
from show1_jax.paths import as_path, in_bucket

SHAPES = "moving_shapes"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One dataset, or a mixture of several.

    Attributes:
      name: changes when the clips do.
      parts: of the mixture, each with its weight.
    """

    name: str
    parts: tuple[tuple["Shapes | Clips", float], ...]

    def split(self, name: str) -> list[Source]:
        """The records for "train" or "validation"; raises InputError if there are none."""
        return [Source(part.split(name), _read(part), weight) for part, weight in self.parts]

    def captions(self) -> Iterable[str]:
        """All captions."""
        return itertools.chain.from_iterable(part.captions() for part, _ in self.parts)


class Shapes:
    """The moving shapes, which are built if they do not exist yet."""

    def __init__(self, clips: int, data_dir: Path):
        """Raises InputError if the dataset is damaged or cannot be written."""
        from show1_jax.shapes import moving_shapes  # a data set like others: nothing here needs it

        if in_bucket(data_dir):  # TFDS writes to disks alone; this one takes seconds to make
            data_dir = cache_folder() / "tensorflow_datasets"
        config = moving_shapes.MovingShapesConfig(train=clips)
        self._builder = _builder(moving_shapes.MovingShapes, config, data_dir)
        self.identity: str = self._builder.info.full_name
        self.read, self.captions = moving_shapes.read, moving_shapes.captions
        self.split("train")

    def split(self, name: str) -> Sequence[Mapping[str, Any]]:
        """The records of a split."""
        return open_split(self._builder, name)


def _read(part: Shapes | Clips) -> Read:
    return part.read if isinstance(part, Shapes) else clips.read


def open_dataset(train: ConfigDict, where: str = "train") -> Dataset:
    """Opens a config's dataset. All processes have to call this, and index it together.

    Args:
      train: a config's `train` section of a part.
      where: the section is in the config, for messages.

    Raises:
      InputError: if a dataset is neither "moving_shapes" nor shards nor a folder of clips, a
        filter cannot be applied, no clip is left, or something is damaged.
    """
    names = (train.dataset,) if isinstance(train.dataset, str) else tuple(train.dataset)
    if not names:
        raise InputError(f"{where}.dataset names no dataset")
    selection = Selection(
        read_filters(train.filters, f"config.{where}.filters"), float(train.clip_seconds)
    )
    team = Team(jax.process_index(), jax.process_count(), hosts.wait)
    data_dir, parts = as_path(train.data_dir), []
    for text in names:
        path, weight = parse_dataset(text)
        part: Shapes | Clips
        if path == SHAPES:
            with hosts.first_alone(SHAPES):
                part = Shapes(train.clips, data_dir)
        else:
            part = open_clips(str(as_path(path)), data_dir, selection, team)
            for warning in part.warnings if hosts.first() else ():
                logging.warning("%s", warning)
            for message in part.messages:
                hosts.say(message)
        parts.append((part, weight))
    described = [part.identity + f"={weight:g}" * (len(parts) > 1) for part, weight in parts]
    return Dataset(", ".join(described), tuple(parts))


def parse_dataset(text: str) -> tuple[str, float]:
    """A dataset's path and weight, from `PATH` or `PATH=WEIGHT`; raises InputError."""
    if not isinstance(text, str) or not text:
        raise InputError(f"datasets are PATH or PATH=WEIGHT, not {text!r:.40}")
    path, _, last = text.rpartition("=")
    if not path or "/" in last:
        return text, 1.0
    try:
        weight = float(last)
    except ValueError:
        weight = np.nan
    if not (np.isfinite(weight) and weight > 0):
        raise InputError(f"dataset {text!r}: {last!r} is not a weight, such as 0.5")
    return path, weight


def _builder(
    kind: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, data_dir: Path
) -> tfds.core.DatasetBuilder:
    """Opens a dataset that may have been built before."""
    try:
        return kind(config=config, data_dir=data_dir)
    except (OSError, ValueError, LookupError, ParseError) as error:
        raise damaged(str(data_dir / kind.name / config.name), error) from error


def params_fingerprint(params: Any) -> str:
    """Tells parameters apart by their values: the files change whenever they are exported."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        digest.update(path.encode() + fetch(leaf).tobytes())
    return digest.hexdigest()[:16]


def training_batches(
    train: ConfigDict,
    dataset: Dataset,
    spec: ClipSpec,
    text: Callable[[str], np.ndarray] | None,
) -> grain.DatasetIterator:
    """Endless batches, made ahead in other threads or processes.

    Where several processes train together, this one's `own_rows` of each batch.
    """
    batches = make_pipeline(
        dataset.split("train"),
        spec,
        batch_size=train.batch_size,
        seed=train.seed,
        training=True,
        rows=own_rows(train.batch_size),
        text=text,
        threads=train.threads,
    )
    if train.workers:
        if not flags.FLAGS.is_parsed():  # Grain tells its processes what its flags are
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=train.workers, per_worker_buffer_size=4)
        )
    else:
        batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=4)
    return iter(batches)


def validation_batches(
    train: ConfigDict,
    dataset: Dataset,
    spec: ClipSpec,
    text: Callable[[str], np.ndarray] | None,
) -> list[dict[str, Any]]:
    """The first `validation_batches` batches of the validation split, kept in memory.

    Where fewer clips can be used than a batch has, they are one batch.

    Raises:
      InputError: if there is not one.
    """
    examples = make_pipeline(
        dataset.split("validation"),
        spec,
        batch_size=1,
        seed=train.seed,
        training=False,
        text=text,
        threads=train.threads,
    )
    size = train.validation_batch_size
    found = list(itertools.islice(examples, train.validation_batches * size))
    if not found:
        raise InputError("no clip of the split for validation can be used")
    size = min(size, len(found))
    return [
        {key: np.concatenate([clip[key] for clip in found[i : i + size]]) for key in found[0]}
        for i in range(0, len(found) - size + 1, size)
    ]
