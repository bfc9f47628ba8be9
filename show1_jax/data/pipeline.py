"""From a stored dataset to batches of clips: one Grain pipeline for all datasets.

The order of a run's examples and what is random about each depend only on the
seed, the epoch and the number of the record: neither on the batch size, nor on
how many processes share each batch, nor on where the run was last interrupted. The
state of the iterator, from `get_state()`, is a small dictionary that JSON can
hold; `set_state()` continues with the batch that would have been next.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from google.protobuf.message import DecodeError

from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.errors import InputError

AHEAD = 16  # examples
LATER = 10**6  # epochs


class Read(Protocol):
    """Makes a clip from a stored record: `moving_shapes.read`, `video_folder.read`."""

    def __call__(
        self, record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None
    ) -> np.ndarray:
        """See `video_folder.read`."""


def open_split(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[Mapping[str, Any]]:
    """The records of a split, after building the dataset if it is not there yet.

    On a disk that processes share, let one of them build first.

    Args:
      builder: `MovingShapes` or `VideoFolder`.
      split: "train" or "validation".

    Raises:
      InputError: if there is no such split, it is empty, or the dataset is damaged or cannot be
        written. Reading a damaged record raises it as well.
    """
    try:
        builder.download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # the array_record writer raises the latter
        reason = str(error).splitlines()[0]
        raise InputError(f"{builder.data_dir} cannot be written: {reason}") from error
    try:
        source = builder.as_data_source(split)
    except ValueError:
        splits = ", ".join(builder.info.splits)
        raise InputError(
            f"{builder.name} has no clips in the split {split!r}; its splits are {splits}"
        ) from None
    except NotImplementedError as error:  # what says in which format it is has been lost
        raise InputError(
            f"{builder.data_dir} is damaged; remove it, and it is built again"
        ) from error
    return _Records(source, str(builder.data_dir))


class _Records(Sequence[Mapping[str, Any]]):
    """The records of a split, whose files may be damaged."""

    def __init__(self, source: Sequence[Mapping[str, Any]], folder: str):
        self._source, self._folder = source, folder
        with self._reading():
            self._length = len(source)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(index)
        with self._reading():
            return self._source[index]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        # The array_record reader raises RuntimeErrors alone.
        except (OSError, RuntimeError, ValueError, KeyError, DecodeError) as error:
            raise damaged(self._folder, error) from error


def damaged(folder: str, error: Exception) -> InputError:
    """What to say of a dataset that cannot be read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    # Files that are there and cannot be opened or read are no reason to remove any.
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return InputError(f"{folder} cannot be read: {error.strerror}")
    return InputError(f"{folder} is damaged: {reason}; remove it, and it is built again")


def make_pipeline(
    records: Sequence[Mapping[str, Any]],
    read: Read,
    spec: ClipSpec,
    *,
    batch_size: int,
    seed: int,
    training: bool,
    rows: Sequence[int] | None = None,
    text: Callable[[str], np.ndarray] | None = None,
    threads: int = 4,
) -> grain.IterDataset:
    """Batches of clips, without end and shuffled in training, once and in order otherwise.

    Records that cannot be used are named in the log and skipped, in training for another in
    their place. Only whole batches are given.

    Args:
      records: of a split; see `open_split`.
      read: makes a clip from a record.
      spec: the clips that the stage wants.
      batch_size: clips in each batch.
      seed: of order and augmentation.
      training: whether to shuffle, repeat and augment.
      rows: the places in each batch to make, where processes share batches; None
        for all.
      text: looks up a caption's embedding; see `text_cache`.
      threads: how many read and decode; 0 for none beside the caller's.

    Returns:
      An iterable of dictionaries: `video` `(rows, frames, height, width, 3)` uint8,
      to be converted where it is used because a quarter as many bytes then travel;
      `caption` `(rows,)` strings; and with `text`, `text` `(rows, tokens, width)`.

    Raises:
      InputError: if there are too few records for a batch, and while iterating if
        no record can be used.
    """
    rows = range(batch_size) if rows is None else rows
    if batch_size < 1 or not set(rows) <= set(range(batch_size)) or not rows:
        raise InputError(f"places {list(rows)} of batches of {batch_size} cannot be made")
    if not training and len(records) < batch_size:
        raise InputError(f"{len(records)} clips are too few for a batch of {batch_size}")
    examples = grain.MapDataset.source(records).seed(seed)
    examples = examples.random_map(_ToExample(read, spec, training, text, len(records)))
    if training:
        examples = examples.shuffle().repeat()
        examples = grain.MapDataset.source(_Filled(examples, len(records)))
    if len(rows) < batch_size:
        # Shared out last, so that together the processes see each epoch exactly once.
        examples = grain.MapDataset.source(_Places(examples, batch_size, rows))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD)
    return examples.to_iter_dataset(options).batch(len(rows), drop_remainder=True)


class _Filled:
    """Of shuffled epochs without end, examples that are all there.

    In place of one that cannot be used comes that of the same place so many epochs later that
    no run gets there: so the others keep theirs, whichever process makes them.
    """

    def __init__(self, examples: grain.MapDataset, epoch: int):
        self._examples, self._epoch = examples, epoch

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        while (example := self._examples[index]) is None:
            index += self._epoch * LATER
        return example


class _Places:
    """Of examples that come in batches, those in some places."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        self._examples, self._batch_size, self._rows = examples, batch_size, rows

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        batch, place = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + self._rows[place]]


class _ToExample(grain.transforms.RandomMap):
    """Makes the example of a record, or None of one that cannot be used."""

    def __init__(
        self,
        read: Read,
        spec: ClipSpec,
        training: bool,
        text: Callable[[str], np.ndarray] | None,
        records: int,
    ):
        self._read, self._spec, self._training, self._text = read, spec, training, text
        self._records = records
        self._skipped: set[str] = set()
        self._found = False  # one that can be used
        self._failures = 0  # before that; threads share both

    def random_map(
        self, record: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, Any] | None:
        try:
            video = self._read(record, self._spec, rng if self._training else None)
        except UnusableClip as error:
            self._skip(record["name"].decode(), error)
            return None
        self._found = True
        caption = record["caption"].decode()
        example = {"video": video, "caption": caption}
        return example | {"text": self._text(caption)} if self._text else example

    def _skip(self, name: str, error: UnusableClip) -> None:
        if name not in self._skipped:
            self._skipped.add(name)
            logging.warning("clip %s is skipped: %s (%d so far)", name, error, len(self._skipped))
        if self._found:
            return
        self._failures += 1
        # While training, threads meet the bad ones of few clips again before the first good
        # one is read.
        patience = min(10 * self._records, 1000) if self._training else 0
        if self._failures >= max(self._records, patience):
            raise InputError(f"none of the {self._records} clips can be used; {name}: {error}")
