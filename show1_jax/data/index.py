"""The index of a dataset: where each clip is, its captions and its metadata.

    DATA_DIR/clips/NAME/part-00000 …    what some of the files have; removed in the end
    DATA_DIR/clips/NAME/index           all of it; see `rows` for the columns

NAME changes when the dataset's files do. All processes of a run build parts, the first one joins
them. A part and the index appear when they are complete, so that a build that was interrupted goes
on with the parts that are there.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol

import numpy as np
from etils import epath
from etils.epath import Path

from show1_jax.data import captions, table
from show1_jax.data.rows import FIELD, Rows
from show1_jax.data.shards import Shard, find_shards, scan
from show1_jax.errors import InputError
from show1_jax.files import cache_folder
from show1_jax.media import make_folder
from show1_jax.paths import in_bucket

MAX_PARTS = 1024  # of shards
ROWS = 50_000  # of a caption file in a part
MIN_PARTS = 8  # from which on workers, processes of this machine, help
MAX_WORKERS = 32
THREADS = 32  # of a bucket's reads
MAX_NOTES = 5

Work = Callable[[], tuple[Rows, dict[str, Any]]]
"""Makes a part: its clips, and what else is to be said about it."""


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes that build an index together.

    Attributes:
      index: of this one.
      count: of all.
      wait: waits until all have called it with the same text.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None


class Files(Protocol):
    """The files that an index is made of."""

    @property
    def where(self) -> str:
        """What the user calls it."""

    @property
    def key(self) -> str:
        """Changes when the files do."""

    @property
    def about(self) -> dict[str, Any]:
        """What a reader of the index needs to know."""

    def parts(self) -> Iterator[Work]:
        """The parts, in order. Other processes call them."""


def find_files(where: str) -> Files:
    """Finds out what a dataset is; raises InputError if it is neither shards nor a folder."""
    if not in_bucket(where):
        where = os.path.abspath(where)  # the index may be used from elsewhere
    if shards := find_shards(where):
        return _ShardFiles(where, tuple(shards))
    path = captions.find_caption_file(epath.Path(where))
    return _FolderFiles(where, str(path), captions.digest(path))


@dataclasses.dataclass(frozen=True)
class _ShardFiles:
    where: str
    shards: tuple[Shard, ...]

    @property
    def key(self) -> str:
        return _digest([dataclasses.astuple(shard) for shard in self.shards])

    @property
    def about(self) -> dict[str, Any]:
        return {"files": [shard.path for shard in self.shards]}

    def parts(self) -> Iterator[Work]:
        each = -(-len(self.shards) // MAX_PARTS)
        for first in range(0, len(self.shards), each):
            yield _ShardsWork(first, self.shards[first : first + each])


@dataclasses.dataclass(frozen=True)
class _ShardsWork:
    first: int
    shards: tuple[Shard, ...]

    def __call__(self) -> tuple[Rows, dict[str, Any]]:
        rows, notes = Rows(), []
        for number, shard in enumerate(self.shards, start=self.first):
            notes += scan(shard, number, rows)
        return rows, {"notes": notes}


@dataclasses.dataclass(frozen=True)
class _FolderFiles:
    where: str
    captions: str  # path of the caption file
    digest: str

    @property
    def key(self) -> str:
        return _digest([self.captions, self.digest])

    @property
    def about(self) -> dict[str, Any]:
        return {"folder": self.where}

    def parts(self) -> Iterator[Work]:
        rows = captions.read_rows(epath.Path(self.captions))
        while some := list(itertools.islice(rows, ROWS)):
            yield _FolderWork(self.where, some)


@dataclasses.dataclass(frozen=True)
class _FolderWork:
    folder: str
    some: list[captions.Row]

    def __call__(self) -> tuple[Rows, dict[str, Any]]:
        rows, finder = Rows(), captions.Finder(self.folder)
        lost = [path for row in self.some if (path := finder.add(row, rows))]
        return rows, {"missing": [len(lost), lost[: captions.MAX_NAMED]]}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def open_index(files: Files, data_dir: epath.Path, team: Team) -> table.Table:
    """Opens a dataset's index, and builds it if it does not exist yet.

    All processes of a team have to call this. If they do not share `data_dir`, each builds all of
    it.

    Args:
      files: of `find_files`.
      data_dir: of the config, on a disk or in a bucket.
      team: the processes.

    Raises:
      InputError: if the dataset has no clips, or the index is damaged or cannot be written.
    """
    label = re.sub(r"[^\w.-]+", "-", files.where.rstrip("/").rpartition("/")[2])[:60]
    folder = data_dir / "clips" / f"{label}-{files.key}"
    path = folder / "index"
    if not path.exists():
        make_folder(folder)
        _build_parts(files, folder, team)
    team.wait(f"parts of {folder.name}")
    if team.index == 0:
        _complete(files, folder)
    team.wait(f"index of {folder.name}")
    _complete(files, folder)
    return table.Table(_on_disk(path))


def _complete(files: Files, folder: epath.Path) -> None:
    """Builds what is missing."""
    if not (folder / "index").exists():
        make_folder(folder)
        _build_parts(files, folder, Team())
        try:
            _join(files, folder)
        except (InputError, OSError):
            # Another run may have joined the same parts, and removed them.
            if not (folder / "index").exists():
                raise


def _build_parts(files: Files, folder: epath.Path, team: Team) -> None:
    """Builds this process's share of the parts."""
    there = {path.name for path in folder.iterdir()}
    mine = (
        (work, folder / _part(number))
        for number, work in enumerate(files.parts())
        if number % team.count == team.index and _part(number) not in there
    )
    few = list(itertools.islice(mine, MIN_PARTS))
    if len(few) < MIN_PARTS and not in_bucket(files.where):
        for work, path in few:
            _build_part(work, path)
        return
    try:
        with _executor(files) as pool:
            _run(pool, itertools.chain(few, mine))
    except BrokenProcessPool:
        raise InputError(
            f"{files.where}: a process that indexed it was killed, perhaps because memory is "
            "short; the same command goes on with what is done"
        ) from None


def _executor(files: Files) -> Executor:
    if in_bucket(files.where):
        return ThreadPoolExecutor(THREADS)
    # Forking would copy the threads of JAX.
    count = min(os.cpu_count() or 1, MAX_WORKERS)
    return ProcessPoolExecutor(count, get_context("spawn"), _end_with, (os.getpid(),))


def _end_with(parent: int) -> None:
    """Ends this process when its parent is killed: the pool's workers would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(pool: Executor, jobs: Iterable[tuple[Work, epath.Path]]) -> None:
    """Runs jobs of which only some are in memory at a time; ends with the first error."""
    running: set[Any] = set()
    try:
        for job in jobs:
            running.add(pool.submit(_build_part, *job))
            if len(running) >= 2 * THREADS:
                done, running = wait(running, return_when="FIRST_COMPLETED")
                for each in done:
                    each.result()
        for each in running:
            each.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _build_part(work: Work, path: epath.Path) -> None:
    rows, about = work()
    with table.writing(path) as writer:
        rows.write(writer, about | {"clips": len(rows)})


def _part(number: int) -> str:
    return f"part-{number:05}"


def _join(files: Files, folder: epath.Path) -> None:
    """Joins the parts to the index, and removes them."""
    parts = sorted(path for path in folder.iterdir() if path.name.startswith("part-"))
    with tempfile.TemporaryDirectory() as local:
        paths = [str(part) for part in parts]
        if in_bucket(folder):
            paths = [str(Path(local) / part.name) for part in parts]
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(_copy, parts, paths))
        about = files.about | _summary(files, [table.read_about(path) for path in paths])
        with table.writing(folder / "index") as writer:
            if isinstance(files, _FolderFiles):
                whole = Path(local) / "rows"
                with whole.open("wb") as file:
                    rows = table.Writer(file)
                    table.concatenate(paths, rows)
                    rows.close({})
                _group(table.Table(str(whole)), writer)
            else:
                table.concatenate(paths, writer)
            writer.close(about)
    for part in parts:
        part.unlink(missing_ok=True)


def _summary(files: Files, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What is to be said about all parts; raises InputError if they have no clips."""
    notes = [note for part in parts for note in part.get("notes", [])]
    if len(notes) > MAX_NOTES:
        notes = [*notes[:MAX_NOTES], f"{files.where}: {len(notes) - MAX_NOTES} more such warnings"]
    count = sum(part["missing"][0] for part in parts if "missing" in part)
    names = [name for part in parts if "missing" in part for name in part["missing"][1]]
    total = count + sum(part["clips"] for part in parts)
    lost = captions.missing(names, count)
    if total == count:
        what = f"all {count} files are missing: {lost}" if count else "it lists none"
        where = files.captions if isinstance(files, _FolderFiles) else files.where
        raise InputError(f"{where} gives no clips: {'; '.join(notes) or what}")
    if count:
        notes.append(f"{count} of {total} clips are missing and skipped: {lost}")
    return {"notes": notes}


def _group(rows: table.Table, writer: table.Writer) -> None:
    """Writes one row for each file: its rows of the caption file are captions of one clip."""
    columns = rows.columns
    _, first, inverse = np.unique(columns["hash"], return_index=True, return_inverse=True)
    if len(first) == len(inverse):
        for name, column in columns.items():
            writer.add(name, column.dtype, _pieces(column))
        return
    order = np.argsort(first)  # clips as they come in the file
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    chosen = first[order]
    texts = np.argsort(rank[inverse], kind="stable")  # each row has one caption
    for name, column in columns.items():
        if name in ("source", "offset", "size", "hash") or name.startswith(FIELD):
            writer.add(name, column.dtype, [column[chosen]])
    ends = np.cumsum(np.bincount(inverse)[order])
    writer.add("captions" + table.ENDS, np.int64, [ends])
    characters = columns["caption.characters"]
    writer.add("caption.characters", characters.dtype, [characters[texts]])
    table.take_texts(rows, "name", chosen, writer)
    table.take_texts(rows, "caption", texts, writer)


def _pieces(column: np.ndarray) -> Iterator[np.ndarray]:
    many = 1 << 20
    return (column[start : start + many] for start in range(0, len(column), many))


def _copy(source: epath.Path, target: str) -> None:
    with source.open("rb") as file, open(target, "wb") as local:
        shutil.copyfileobj(file, local, 1 << 24)


def _on_disk(path: epath.Path) -> str:
    """The path of an index on this machine, to which it is copied from a bucket once."""
    if not in_bucket(path):
        return str(path)
    target = cache_folder() / "clips" / path.parent.name
    if not target.exists():
        make_folder(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent) as partial:
            _copy(path, str(Path(partial) / "index"))
            (Path(partial) / "index").replace(target)
    return str(target)


def identity(index: table.Table) -> str:
    """Changes when names, places or captions of clips do; a copy of them elsewhere has the same."""
    names = ("name", "offset", "size", "captions" + table.ENDS, "caption", "caption" + table.ENDS)
    return _digest([index.checksums[name] for name in names])


def fields(index: table.Table) -> Mapping[str, np.ndarray]:
    """The columns of the metadata, by name."""
    return {
        name.removeprefix(FIELD): column
        for name, column in index.columns.items()
        if name.startswith(FIELD)
    }
