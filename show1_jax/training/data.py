"""A run's clips: dataset, and the pipelines over it."""

import hashlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from flax.traverse_util import flatten_dict
from google.protobuf.json_format import ParseError
from ml_collections import ConfigDict

from show1_jax.data import video_folder
from show1_jax.data.clip import ClipSpec
from show1_jax.data.pipeline import Read, damaged, make_pipeline, open_split
from show1_jax.errors import InputError
from show1_jax.parallel.hosts import fetch
from show1_jax.parallel.sharding import own_rows
from show1_jax.paths import local_path

SHAPES = "moving_shapes"


def open_dataset(train: ConfigDict) -> tuple[tfds.core.DatasetBuilder, Read, Iterable[str]]:
    """A config's dataset, how its records are read, and its captions.

    Raises:
      InputError: if it is neither "moving_shapes" nor a folder of clips, or is damaged.
    """
    data_dir = local_path(train.data_dir)
    if train.dataset == SHAPES:
        from show1_jax.shapes import moving_shapes  # a data set like others: nothing here needs it

        captions = moving_shapes.captions()
        shapes = moving_shapes.MovingShapesConfig(train=train.clips)
        builder = _builder(moving_shapes.MovingShapes, shapes, data_dir)
        return builder, moving_shapes.read, captions
    folder = local_path(train.dataset)
    config = video_folder.VideoFolderConfig(folder)
    builder = _builder(video_folder.VideoFolder, config, data_dir)
    return builder, video_folder.read, video_folder.captions(folder)


def make_text_encoders(checkpoint: Path) -> None:
    """Writes the random text encoders for captions of moving shapes; see `text_encoder.make`."""
    from show1_jax.shapes import text_encoder

    text_encoder.make(checkpoint)


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
    builder: tfds.core.DatasetBuilder,
    read: Read,
    spec: ClipSpec,
    text: Callable[[str], np.ndarray] | None,
) -> grain.DatasetIterator:
    """Endless batches, made ahead in other threads or processes.

    Where several processes train together, this one's `own_rows` of each batch.
    """
    dataset = make_pipeline(
        open_split(builder, "train"),
        read,
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
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=train.workers, per_worker_buffer_size=4)
        )
    else:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=4)
    return iter(dataset)


def validation_batches(
    train: ConfigDict,
    builder: tfds.core.DatasetBuilder,
    read: Read,
    spec: ClipSpec,
    text: Callable[[str], np.ndarray] | None,
) -> list[dict[str, Any]]:
    """The first `validation_batches` batches of the validation split, kept in memory.

    Where fewer clips can be used than a batch has, they are one batch.

    Raises:
      InputError: if there is not one.
    """
    dataset = make_pipeline(
        open_split(builder, "validation"),
        read,
        spec,
        batch_size=1,
        seed=train.seed,
        training=False,
        text=text,
        threads=train.threads,
    )
    size = train.validation_batch_size
    clips = list(itertools.islice(dataset, train.validation_batches * size))
    if not clips:
        raise InputError("no clip of the split for validation can be used")
    size = min(size, len(clips))
    return [
        {key: np.concatenate([clip[key] for clip in clips[i : i + size]]) for key in clips[0]}
        for i in range(0, len(clips) - size + 1, size)
    ]
