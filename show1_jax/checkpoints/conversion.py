"""Converts whole released folders, network by network and array by array."""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils.epath import Path
from flax.traverse_util import unflatten_dict

from show1_jax.checkpoints.layout import ORIGIN, PARAMS, params_folder, write_reference
from show1_jax.checkpoints.lazy import LazyArray
from show1_jax.checkpoints.networks import Network, read_json
from show1_jax.checkpoints.partial import Finished, Partial, signature
from show1_jax.checkpoints.pipelines import (
    ENCODERS,
    NETWORKS,
    check_pipeline,
    components,
    copy_file,
    copy_small_files,
    find_pipelines,
    open_network,
    trusted_folders,
)
from show1_jax.checkpoints.store import check_shapes, describe_params, save_params, visit_params
from show1_jax.checkpoints.torch_files import (
    WeightFiles,
    by_file,
    find_weights,
    is_file_name,
    same_tensors,
)
from show1_jax.checkpoints.torch_params import (
    cast,
    contiguous,
    digest,
    keys_by_path,
    lazy_params,
    torch_keys,
    torch_shape,
)
from show1_jax.checkpoints.torch_writer import WeightWriter
from show1_jax.errors import InputError, Preempted, why
from show1_jax.files import written_on_disk
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder
from show1_jax.progress import Progress

MAX_BUFFER = 2**20  # elements; CLIP's positions have 77

# Names of arrays, ours or PyTorch's, with the `digest` of each.
Digests = dict[str, str]


class _Job(NamedTuple):
    """One network to convert.

    Attributes:
      name: of its folder in the checkpoint.
      label: its name in reports.
      src: folder to read.
      dst: folder to write.
      encoder: whether it is a text encoder; several stages may have equal ones.
    """

    name: str
    label: str
    src: Path
    dst: Path
    encoder: bool


def convert_pipelines(
    src: Path,
    dst: Path,
    to_torch: bool,
    dtype: np.dtype | None,
    verify: bool,
    *,
    report: Callable[[str], None],
    progress: Progress | None = None,
) -> None:
    """Converts every pipeline in a folder.

    The conversion writes to `DST.partial`, and renames it when everything is written. If it fails
    or is interrupted, `DST.partial` keeps the finished networks, and the same conversion
    continues from there.

    Args:
      src: a pipeline folder, or a folder of pipeline folders.
      dst: folder to make; must not exist.
      to_torch: converts from Orbax to PyTorch, instead of from PyTorch to Orbax.
      dtype: cast to this dtype; None keeps the stored one.
      verify: reads the result back and compares it with the source bit for bit.
      report: called with a line for each network.
      progress: shows how far the conversion is, and may stop it with `Preempted`; closed at the
        end.

    Raises:
      InputError: if `src` or `dst` cannot be used; then `dst` is not made.
      Preempted: if `progress` raised it; the message says what is left.
    """
    if to_torch and verify and dtype is not None:
        raise InputError("--to-torch --verify compares stored precisions; remove --dtype")
    with contextlib.closing(progress or Progress()) as progress:
        _convert_pipelines(src, dst, to_torch, dtype, verify, report, progress)


def _convert_pipelines(
    src: Path,
    dst: Path,
    to_torch: bool,
    dtype: np.dtype | None,
    verify: bool,
    report: Callable[[str], None],
    progress: Progress,
) -> None:
    pipelines = find_pipelines(src)
    with progress.bar(f"checking {src}", None):
        for pipeline in pipelines:
            check_pipeline(pipeline, to_torch)
            for part, kind in components(pipeline):
                if to_torch and kind in NETWORKS:
                    _origin(pipeline / part, open_network(pipeline / part))
            progress.add(0)
    if dst.exists():
        raise InputError(f"{dst} exists already; give a new folder")
    partial = Partial(dst)
    try:
        jobs = _jobs(src, pipelines, partial.checkpoint)
        how = [to_torch, dtype and dtype.name]
        sources = {job.name: signature(job.src, params_folder(job.src), how) for job in jobs}
        partial.keep(sources)
        _copy(src, pipelines, jobs, partial)
        direction = _ToTorch(dtype, progress) if to_torch else _ToOrbax(dtype, progress)
        for number, job in enumerate(jobs, 1):
            with_number = job._replace(label=f"{number}/{len(jobs)} {job.label}")
            said = _convert(direction, with_number, jobs, sources, verify, partial)
            report(f"{job.label}: {said}")
        partial.publish()
    except InputError as error:
        # An error in one network must not discard the other networks.
        left = partial.leave()
        raise InputError(f"{error}{left and '; ' + left}") from error
    except Preempted:
        raise Preempted(f"stopped; {partial.leave() or 'nothing is left'}") from None
    except OSError as error:
        left = partial.leave()
        raise InputError(f"{dst} cannot be written: {why(error)}{left and '; ' + left}") from None
    finally:
        partial.close()


def _jobs(src: Path, pipelines: list[Path], checkpoint: Path) -> list[_Job]:
    jobs = []
    for pipeline in pipelines:
        for part, kind in components(pipeline):
            if kind in NETWORKS:
                name = (pipeline.relative_to(src) / part).as_posix()
                label = f"{pipeline.name}/{part}"
                jobs.append(_Job(name, label, pipeline / part, checkpoint / name, kind in ENCODERS))
    return jobs


def _copy(src: Path, pipelines: list[Path], jobs: list[_Job], partial: Partial) -> None:
    """Copies all files except weights. Skips networks that are finished."""
    trusted = trusted_folders(src, pipelines)
    finished = {job.src for job in jobs if job.name in partial.networks}
    for pipeline in pipelines:
        target = partial.checkpoint / pipeline.relative_to(src)
        target.mkdir(parents=True, exist_ok=True)
        copy_file(pipeline / "model_index.json", target, trusted)
        for part, _ in components(pipeline):
            if pipeline / part not in finished:
                copy_small_files(pipeline / part, target / part, trusted)


def _convert(
    direction: "_ToOrbax | _ToTorch",
    job: _Job,
    jobs: list[_Job],
    sources: dict[str, str],
    verify: bool,
    partial: Partial,
) -> str:
    """Converts one network unless it is finished; returns a report."""
    count = sum(math.prod(shape) for shape in open_network(job.src).shapes.values())
    said = [f"{count:,} parameters"]
    finished = partial.networks.get(job.name)
    if finished:
        said += ["finished earlier"]
    else:
        other = direction.equal(job, [each for each in jobs if each.name in partial.networks])
        finished = Finished(source=sources[job.name], digests={}, same_as=other, verified=False)
        if not other:
            finished["digests"] = direction.write(job)
        partial.finish(job.name, finished)
    if finished["same_as"]:
        said += [f"equal to {finished['same_as']}, stored once"]
    if verify and not finished["verified"]:
        # An equal network was already compared bit for bit.
        if not finished["same_as"]:
            try:
                direction.verify(job, finished["digests"])
            except InputError:
                del partial.networks[job.name]  # the next attempt converts it again
                raise
        finished["verified"] = True
        partial.finish(job.name, finished)
    return ", ".join([*said, *(["verified"] if verify else [])])


class _ToOrbax:
    """Converts PyTorch files to Orbax checkpoints."""

    def __init__(self, dtype: np.dtype | None, progress: Progress):
        self._dtype, self._progress = dtype, progress
        self._weights: dict[Path, WeightFiles] = {}

    def equal(self, job: _Job, finished: list[_Job]) -> str | None:
        """Returns the name of a finished text encoder with equal weights, or None."""
        if "/" not in job.name or not job.encoder:
            return None
        module, tensors = open_network(job.src).module, self._find(job.src).tensors
        for other in finished:
            if not (other.encoder and (other.dst / PARAMS).is_dir()):
                continue
            if open_network(other.src).module == module:
                theirs = self._find(other.src).tensors
                total = sum(stored.nbytes for stored in tensors.values())
                with self._progress.bar(f"{job.label}: compare with {other.label}", total):
                    if same_tensors(tensors, theirs, self._progress.add):
                        self._write_origin(job)
                        write_reference(job.dst, other.name)
                        return other.name
        return None

    def write(self, job: _Job) -> Digests:
        """Writes a network's parameters and returns their digests by path."""
        built, tensors = open_network(job.src), self._find(job.src).tensors
        digests: Digests = {}

        def noting(path: str, lazy: LazyArray) -> LazyArray:
            def read() -> np.ndarray:
                array = lazy.read()
                digests[path] = digest(array)
                self._progress.add(array.nbytes)
                return array

            return LazyArray(lazy.shape, lazy.dtype, read)

        arrays = lazy_params(built, tensors, str(job.src), self._dtype)
        with self._progress.bar(job.label, sum(lazy.nbytes for lazy in arrays.values())):
            tree = {path: noting(path, lazy) for path, lazy in arrays.items()}
            save_params(job.dst / PARAMS, unflatten_dict(tree, sep="/"))
        self._write_origin(job)
        return digests

    def verify(self, job: _Job, digests: Digests) -> None:
        """Reads a network's parameters back.

        Raises:
          InputError: if they differ from what was written.
        """
        described = describe_params(job.dst / PARAMS)
        read: Digests = {}

        def visit(path: str, array: np.ndarray) -> None:
            read[path] = digest(array)
            self._progress.add(array.nbytes)

        total = sum(each.size * each.dtype.itemsize for each in described.values())
        with self._progress.bar(f"{job.label}: verify", total):
            visit_params(job.dst / PARAMS, visit)
        _compare(job, digests, read)

    def _find(self, folder: Path) -> WeightFiles:
        """Finds the weights of a network. Caches them, because reading headers takes a second."""
        if folder not in self._weights:
            self._weights[folder] = find_weights(folder)
        return self._weights[folder]

    def _write_origin(self, job: _Job) -> None:
        weights, buffers = self._find(job.src), open_network(job.src).table.buffers
        origin = {
            "index": weights.index.name if weights.index else None,
            "files": {key: stored.file.name for key, stored in weights.tensors.items()},
            "buffers": {
                key: list(stored.shape) for key, stored in weights.tensors.items() if key in buffers
            },
        }
        (job.dst / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")


class _ToTorch:
    """Converts Orbax checkpoints to PyTorch files."""

    def __init__(self, dtype: np.dtype | None, progress: Progress):
        self._dtype, self._progress = dtype, progress

    def equal(self, job: _Job, finished: list[_Job]) -> str | None:
        """Returns None, because PyTorch's layout has no references."""
        return None

    def write(self, job: _Job) -> Digests:
        """Writes a network's weight files and returns the digests of their tensors by key."""
        built, params, where = open_network(job.src), params_folder(job.src), str(job.src)
        origin = _origin(job.src, built)
        described = describe_params(params)
        check_shapes({path: v.shape for path, v in described.items()}, built.shapes, params)
        by_path = keys_by_path(built.table, origin["files"])
        buffers = {
            key: np.array(built.table.buffers[key](tuple(shape)))
            for key, shape in origin["buffers"].items()
        }
        tensors = {key: (array.shape, array.dtype) for key, array in buffers.items()}
        for path, keys in by_path.items():
            for key, layout in keys:
                dtype = self._dtype or described[path].dtype
                tensors[key] = (torch_shape(layout, described[path].shape), dtype)
        digests: Digests = {}
        writers: dict[str, WeightWriter] = {}

        def put(key: str, array: np.ndarray) -> None:
            writers[origin["files"][key]].write(key, array)
            digests[key] = digest(array)

        def visit(path: str, array: np.ndarray) -> None:
            array = cast(array, self._dtype, f"{where}: {path}")
            for key, layout in by_path[path]:
                put(key, contiguous(layout.to_torch(array)))
            self._progress.add(array.nbytes)

        total = sum(v.size * (self._dtype or v.dtype).itemsize for v in described.values())
        with self._progress.bar(job.label, total), contextlib.ExitStack() as files:
            places = {
                name: files.enter_context(written_on_disk(job.dst / name))
                for name in dict.fromkeys(origin["files"].values())
            }
            writers |= _writers(places, origin["files"], tensors, by_path)
            for key, array in buffers.items():
                put(key, array)
            visit_params(params, visit)
            for writer in writers.values():
                writer.finish()
        if origin["index"]:
            size = sum(writer.nbytes for writer in writers.values())
            index = {"metadata": {"total_size": size}, "weight_map": origin["files"]}
            (job.dst / origin["index"]).write_text(json.dumps(index, indent=2) + "\n")
        return digests

    def verify(self, job: _Job, digests: Digests) -> None:
        """Reads a network's weight files back, like a conversion would.

        Raises:
          InputError: if they differ from what was written.
        """
        tensors = find_weights(job.dst).tensors
        read: Digests = {}
        with self._progress.bar(f"{job.label}: verify", sum(v.nbytes for v in tensors.values())):
            for key, stored in tensors.items():
                read[key] = digest(stored.read())
                self._progress.add(stored.nbytes)
        _compare(job, digests, read)


def _compare(job: _Job, written: Digests, read: Digests) -> None:
    if written != read:
        differ = sorted(key for key in written | read if written.get(key) != read.get(key))
        raise InputError(f"{job.src}: {differ[0]} changed in the conversion; run it again")


def _writers(
    places: Mapping[str, Path],
    files: dict[str, str],
    tensors: dict[str, tuple[tuple[int, ...], np.dtype]],
    by_path: dict[str, list[tuple[str, Any]]],
) -> dict[str, WeightWriter]:
    """Makes the weight files of a network, by name, with room for their tensors."""
    path_of = {key: path for path, keys in by_path.items() for key, _ in keys}
    writers = {}
    for name, keys in by_file(files):
        first: dict[str, str] = {}
        tied = {
            key: first[path_of[key]]
            for key in keys
            if key in path_of and first.setdefault(path_of[key], key) != key
        }
        writers[name] = WeightWriter(places[name], {key: tensors[key] for key in keys}, tied)
    return writers


def _origin(src: Path, built: Network) -> dict[str, Any]:
    """Returns which file each tensor goes to: its original one, or one file for new networks."""
    if not (src / ORIGIN).is_file():
        text = isinstance(built.module, T5Encoder | CLIPText)
        name = "model.safetensors" if text else "diffusion_pytorch_model.safetensors"
        return {"index": None, "files": dict.fromkeys(torch_keys(built), name), "buffers": {}}
    origin = {"index": None, "files": {}, "buffers": {}} | read_json(src / ORIGIN)
    if not _fits(origin, built):
        raise InputError(
            f"{src / ORIGIN} does not list this network's tensors; delete it for new file names"
        )
    names = [name for name in origin["files"].values() if not is_file_name(name)]
    if origin["index"] is not None and not is_file_name(origin["index"], index=True):
        names.append(origin["index"])
    if names:
        raise InputError(
            f"{src / ORIGIN} has the file name {names[0]!r}, but names must be plain and end in "
            ".bin, .safetensors or, for an index, .json; delete it for new file names"
        )
    return origin


def _fits(origin: dict[str, Any], built: Network) -> bool:
    """Returns whether a list of files has every parameter, and only known buffers."""
    files, buffers = origin["files"], origin["buffers"]
    if not isinstance(files, dict) or not isinstance(buffers, dict):
        return False
    if buffers.keys() != files.keys() & built.table.buffers.keys():
        return False
    for shape in buffers.values():
        sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        if not sizes or not shape or math.prod(shape) > MAX_BUFFER:
            return False
    found: dict[str, str] = {}
    for key in files.keys() - buffers.keys():
        place = built.table.to_ours(key)
        if place is None or {key, found.setdefault(place[0], key)} - built.table.tied - {key}:
            return False
    return found.keys() == built.shapes.keys()
