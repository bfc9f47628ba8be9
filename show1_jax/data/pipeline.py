"""Makes batches of clips from datasets, with one Grain pipeline for all of them.

The order of examples and their augmentation depend only on the seed, the epoch and the number of
the record. They do not depend on the batch size, the number of processes, or where a run was
interrupted. The iterator's state, from `get_state()`, is a small dictionary that JSON can store;
`set_state()` continues with the batch that would have been next.
"""

import contextlib
import dataclasses
import errno
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from google.protobuf.message import DecodeError

from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.errors import InputError

PREFETCH = 16  # examples
SUBSTITUTE_EPOCHS = 10**6  # later than any run gets


class Read(Protocol):
    """Makes a clip from a record, like `moving_shapes.read` and `clips.read`."""

    def __call__(
        self, record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None
    ) -> np.ndarray:
        """See `clips.read`."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset's records, how clips are made from them, and their share in a mixture.

    Attributes:
      records: mappings that have at least `name` and `captions`.
      read: makes a clip from a record.
      weight: its share is this, divided by the sum over the mixture.
    """

    records: Sequence[Mapping[str, Any]]
    read: Read
    weight: float = 1.0


def open_split(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[Mapping[str, Any]]:
    """Opens the records of a split, and builds the dataset if it does not exist yet.

    If processes share a disk, one of them must build the dataset first.

    Args:
      builder: such as `MovingShapes`.
      split: "train" or "validation".

    Raises:
      InputError: if the split does not exist or is empty, or the dataset is damaged or cannot be
        written. Reading a damaged record raises it too.
    """
    try:
        builder.download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # the array_record writer raises RuntimeError
        reason = str(error).splitlines()[0]
        raise InputError(f"{builder.data_dir} cannot be written: {reason}") from error
    try:
        source = builder.as_data_source(split)
    except ValueError:
        splits = ", ".join(builder.info.splits)
        raise InputError(
            f"{builder.name} has no clips in the split {split!r}; its splits are {splits}"
        ) from None
    except NotImplementedError as error:  # the file that says the format is missing
        raise InputError(
            f"{builder.data_dir} is damaged; remove it, and it will be built again"
        ) from error
    return _Records(source, str(builder.data_dir))


class _Records(Sequence[Mapping[str, Any]]):
    """The records of a split; raises InputError if files are damaged."""

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
        # The array_record reader raises RuntimeErrors.
        except (OSError, RuntimeError, ValueError, KeyError, DecodeError) as error:
            raise damaged(self._folder, error) from error


def damaged(folder: str, error: Exception) -> InputError:
    """Returns the error for a dataset that cannot be read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    # If files exist but cannot be opened or read, do not advise to remove them.
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return InputError(f"{folder} cannot be read: {error.strerror}")
    return InputError(f"{folder} is damaged: {reason}; remove it, and it will be built again")


def make_pipeline(
    sources: Sequence[Source],
    spec: ClipSpec,
    *,
    batch_size: int,
    seed: int,
    training: bool,
    rows: Sequence[int] | None = None,
    text: Callable[[str], np.ndarray] | None = None,
    threads: int = 4,
) -> grain.IterDataset:
    """Makes batches of clips: shuffled and repeated forever in training, else once and in order.

    Training draws one of a clip's captions each time; validation uses the first.

    Records that cannot be used are logged and skipped. In training, another record of the same
    dataset replaces them. An incomplete last batch is dropped.

    Of several datasets, training takes the clips in proportion to their weights, exactly so in
    every few batches. Each has epochs of its own. Validation has all of their clips once, in these
    proportions until one dataset is at its end.

    Args:
      sources: one dataset, or several that are mixed.
      spec: size and timing of the clips.
      batch_size: number of clips per batch.
      seed: decides order and augmentation.
      training: whether to shuffle, repeat and augment.
      rows: indices of the clips of each batch that this process makes; None for all.
      text: makes a caption into an array: its embedding (see `text_cache`) or its tokens.
      threads: number of threads that read and decode; 0 for the caller's thread.

    Returns:
      An iterable of dictionaries. `video` is `(rows, frames, height, width, 3)` uint8, which has
      a quarter of the bytes of fp32. `caption` is `(rows,)` strings. If `text` is given, `text` is
      `(rows, ...)`, what it made of the captions.

    Raises:
      InputError: if there are too few records for a batch, or, while iterating, if no record of a
        dataset can be used.
    """
    rows = range(batch_size) if rows is None else rows
    if batch_size < 1 or not set(rows) <= set(range(batch_size)) or not rows:
        raise InputError(f"rows are {list(rows)}, but must be within a batch of {batch_size}")
    count = sum(len(source.records) for source in sources)
    if not training and count < batch_size:
        raise InputError(
            f"{count} clips are too few for a batch of {batch_size}; reduce the batch size"
        )
    each = []
    for number, source in enumerate(sources):
        # With equal seeds, datasets of equal length would be in the same order.
        examples = grain.MapDataset.source(source.records).seed((seed + number) % 2**32)
        to_example = _ToExample(source.read, spec, training, text, len(source.records))
        examples = examples.random_map(to_example)
        if training:
            examples = examples.shuffle().repeat()
            examples = grain.MapDataset.source(_Filled(examples, len(source.records)))
        each.append(examples)
    examples = _mixed(each, [source.weight for source in sources], training)
    if len(rows) < batch_size:
        # Last, so that all processes together see each epoch exactly once.
        examples = grain.MapDataset.source(_Places(examples, batch_size, rows))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH)
    return examples.to_iter_dataset(options).batch(len(rows), drop_remainder=True)


def proportions(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of weights, to a thousandth of the largest, and not less."""
    least = Fraction(1, 1000)
    shares = [
        max(Fraction(weight / max(weights)).limit_denominator(1000), least) for weight in weights
    ]
    common = math.lcm(*(share.denominator for share in shares))
    if common > 10**6:  # such as thirds, sevenths and so on together
        return [round(1000 * share) for share in shares]
    return [int(share * common) for share in shares]


def _mixed(
    each: Sequence[grain.MapDataset], weights: Sequence[float], training: bool
) -> grain.MapDataset:
    """One dataset of several: in proportion to their weights, or all of them from first to last."""
    if len(each) == 1:
        return each[0]
    if training:
        return grain.MapDataset.mix(each, weights=proportions(weights))
    return grain.MapDataset.source(_Interleaved(each, weights))


class _Interleaved:
    """All examples of several datasets, in proportion to their weights until one is at its end."""

    def __init__(self, each: Sequence[grain.MapDataset], weights: Sequence[float]):
        places = [
            (np.arange(len(examples)) + 0.5) / weight
            for examples, weight in zip(each, weights, strict=True)
        ]
        numbers = np.concatenate(
            [np.full(len(place), number, np.int32) for number, place in enumerate(places)]
        )
        order = np.argsort(np.concatenate(places), kind="stable")
        items = np.concatenate([np.arange(len(place)) for place in places])
        self._each, self._numbers, self._items = each, numbers[order], items[order]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._each[self._numbers[index]][int(self._items[index])]


class _Filled:
    """Repeated epochs in which a bad example is replaced by one from a far-future epoch.

    So all other examples keep their places, whichever process makes them.
    """

    def __init__(self, examples: grain.MapDataset, epoch: int):
        self._examples, self._epoch = examples, epoch

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        while (example := self._examples[index]) is None:
            index += self._epoch * SUBSTITUTE_EPOCHS
        return example


class _Places:
    """The examples of some rows of each batch."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        self._examples, self._batch_size, self._rows = examples, batch_size, rows

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        batch, place = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + self._rows[place]]


class _ToExample(grain.transforms.RandomMap):
    """Makes the example of a record; None if the record cannot be used."""

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
        self._found = False  # whether a record could be used; threads share this and the next
        self._failures = 0  # before the first record that could be used

    def random_map(
        self, record: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, Any] | None:
        try:
            video = self._read(record, self._spec, rng if self._training else None)
        except UnusableClip as error:
            self._skip(record["name"].decode("utf-8", "replace"), error)
            return None
        self._found = True
        captions = record["captions"]
        chosen = int(rng.integers(len(captions))) if self._training else 0
        caption = captions[chosen].decode("utf-8", "replace")
        example = {"video": video, "caption": caption}
        return example | {"text": self._text(caption)} if self._text else example

    def _skip(self, name: str, error: UnusableClip) -> None:
        if name not in self._skipped:
            self._skipped.add(name)
            logging.warning("skipped clip %s: %s (%d so far)", name, error, len(self._skipped))
        if self._found:
            return
        self._failures += 1
        # In training on few clips, threads may read the bad ones repeatedly before the first good
        # one.
        patience = min(10 * self._records, 1000) if self._training else 0
        if self._failures >= max(self._records, patience):
            raise InputError(
                f"none of the {self._records} clips can be used, for example {name}: {error}"
            )
