"""One run of `sample.py`: from flags to files."""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
from absl import logging
from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax import stages as known_stages
from show1_jax.arguments import MAX_SEED
from show1_jax.compilation import use_compilation_cache
from show1_jax.engine import Engine
from show1_jax.errors import InputError, UsageError, why
from show1_jax.memory import return_freed_memory
from show1_jax.outputs import Outputs
from show1_jax.pack import pack
from show1_jax.parallel import hosts
from show1_jax.paths import AnyPath, Checkpoint, as_path, as_paths
from show1_jax.progress import Progress
from show1_jax.stages.inversion import load_noise

DEFAULT_OUT = Path("outputs")
AT_ONCE = 512  # items; T5-XXL's embedding of a prompt has 1.3 MB

Item = tuple[str, int]
"""A prompt and its seed."""
Asked = tuple[str, int | None]
"""A prompt, and its seed if it has one of its own."""


def generate(
    config: ConfigDict,
    checkpoint: Checkpoint | None,
    prompts: str | Sequence[str],
    *,
    out: Path | None,
    prompts_file: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    stages: Sequence[str] | None = None,
    overrides: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
) -> None:
    """Samples prompts and writes their videos.

    Of several processes, each makes every n-th item on its own devices.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint, or several; see `Engine`.
      prompts: the prompts themselves, or one.
      prompts_file: more of them: one on each line, or a .jsonl with a "prompt" on each
        and, if its seed is to be its own, a "seed".
      seeds: the random seeds, each of which makes an item of each prompt; None
        for 0, or for those of `out`.
      out: the folder to write; None for the first of "outputs", "outputs-2", … that is
        new or holds one of these prompts. What is there of these items is not
        made again, and new ones are added. If it already holds the stages that `stages`
        go on from, prompts and seeds may be left out.
      stages: the stages to run; None for all that the checkpoint has.
      overrides: for "steps" and "guidance", a value for all stages or `stage=value`s.
      overwrite: whether results that other settings made may be replaced.
      shard: makes every n-th item from the i-th on, for i and n; None for all. Programs that make
        the other shards need not know of each other; `merge_shards` tells what is missing.

    Raises:
      InputError: if anything given is wrong, or an item failed; the others are made.
    """
    overrides = overrides or {}
    if config.from_noise:
        _start_from_noise(config, seeds, overrides)
    folder = prepare(config, checkpoint, overrides)
    asked = _asked([prompts] if isinstance(prompts, str) else prompts, prompts_file, seeds)
    with contextlib.closing(Progress(hosts.first())) as bars:
        bars.update("checkpoint", 0, 1, "checking")
        engine = Engine(config, folder, stages, jax.local_devices())
        with hosts.first_alone("items"):
            if not engine.loaded.inputs(next(iter(engine.stages))):
                outputs, items, places = _folder_for(asked, seeds, out, _part(shard))
            else:
                outputs = Outputs(as_path(out or DEFAULT_OUT), _part(shard))
                items, places = _found(outputs, asked, seeds)
            if shard is not None:
                places = [place for place in places if place % shard[1] == shard[0]]
            engine.check_inputs(places, outputs)
            known = [place for place in places if outputs.knows(place)]
            replaced = _check_settings(outputs, engine, known, overwrite)
            own = places[jax.process_index() :: jax.process_count()]
            all_prompts, all_seeds = [prompt for prompt, _ in items], [seed for _, seed in items]
            outputs.begin(all_prompts, all_seeds, own)
            outputs.complete(set(known) & set(own))
        bars.clear()
        if replaced:
            hosts.say(replaced)
        # Texts and results of so many items are in memory at once.
        for start in range(0, len(own), AT_ONCE):
            some = own[start : start + AT_ONCE]
            engine.run(all_prompts, all_seeds, outputs, bars.update, some)
    _report(outputs, list(engine.stages), places)


def merge_shards(out: AnyPath, webdataset: bool = False) -> str:
    """Makes one manifest of a folder's, and tells whether all items are complete.

    Args:
      out: the folder that several programs wrote to.
      webdataset: whether to pack the last stage's results into OUT/shards, if none is missing.

    Returns:
      A sentence on what is there.

    Raises:
      InputError: if an item is missing, or the folder cannot be read or written.
    """
    outputs = Outputs(as_path(out))
    stages, missing = outputs.merge()
    count = len(outputs.prompts)
    if not stages:
        raise InputError(f"{outputs.folder} has {count} item(s), but no result yet")
    if not missing:
        text = f"{count} item(s) in {outputs.folder} are complete: {', '.join(stages)}"
        return text + (f"; packed in {pack(outputs, stages[-1])}" if webdataset else "")
    lacking = sorted({item for item, _ in missing})
    named = ", ".join(map(str, lacking[:20])) + (", ..." if lacking[20:] else "")
    reasons = (f"; {stage} of {item}: {text}" for (item, stage), text in missing.items() if text)
    raise InputError(
        f"{len(lacking)} of {count} item(s) in {outputs.folder} lack results: {named}"
        f"{next(reasons, '')}; run their shards again, item modulo N of --shard I/N, then --merge"
    )


def _part(shard: tuple[int, int] | None) -> str:
    """What this process's manifest is called among those that share a folder."""
    own = [] if shard is None else [f"{shard[0]}-of-{shard[1]}"]
    if jax.process_count() > 1:
        own.append(f"process-{jax.process_index()}")
    return "-".join(own)


def parse_shard(text: str) -> tuple[int, int]:
    """A shard such as "3/64": the fourth of 64, as "0/64" is the first.

    Raises:
      InputError: if it is not such.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise InputError(f"--shard {text!r}: give I/N, with I from 0 to N - 1")
    return int(match[1]), int(match[2])


def _report(outputs: Outputs, stages: Sequence[str], places: Sequence[int]) -> None:
    """Says what a run made; raises InputError if some of it failed."""
    outputs.failures = [
        tuple(failure) for each in hosts.gather(outputs.failures) for failure in each
    ]
    if jax.process_count() > 1:
        hosts.wait("items are made")
        if hosts.first():
            outputs.merge()
    if outputs.failures:
        item, stage, why = outputs.failures[0]
        count = len({item for item, *_ in outputs.failures})
        raise InputError(
            f"{count} of {len(places)} item(s) failed: {stage} of item {item}: {why}"
            + (f"; see {outputs.manifest}" if outputs.failures[1:] else "")
        )
    made, removed = (
        {tuple(result) for each in hosts.gather(sorted(results)) for result in each}
        for results in (outputs.made, outputs.removed)
    )
    kept = len(places) * len(stages) - len(made)
    again, gone = len(made & removed), len(removed - made)
    hosts.say(
        f"{len(places)} item(s) in {outputs.folder}: {', '.join(stages)}; "
        f"{len(made)} result(s) made"
        + (f" ({again} of them again)" if again else "")
        + f", {kept} there already"
        + (f", {gone} earlier result(s) removed" if gone else "")
        + (f"; see {outputs.shown(places[0], stages[-1])[0]}" if places else "")
    )


def _check_settings(outputs: Outputs, engine: Engine, items: Sequence[int], overwrite: bool) -> str:
    """Tells which results a run replaces or removes.

    Raises:
      InputError: if there are some, and they may not be overwritten.
    """
    found = {item: outputs.outdated(item, engine.made_by) for item in items}
    count = sum(len(stages) for stages in found.values())
    if not count:
        return ""
    why = next(reason for stages in found.values() for reason in stages.values())
    text = f"{outputs.folder} has {count} result(s) that other settings made ({why})"
    if not overwrite:
        raise InputError(f"{text}: give --overwrite to replace them, or another --out")
    return f"{text}, which are replaced"


def _start_from_noise(
    config: ConfigDict, seeds: Sequence[int] | None, overrides: Mapping[str, Sequence[str]]
) -> None:
    """Unless it is asked for, the stage of the noise is not guided: that leads away from the clip.

    Raises:
      InputError: if the noise is damaged, or what it decides is asked for otherwise.
    """
    stage = load_noise(as_path(config.from_noise)).stage
    if len(seeds or ()) > 1:
        raise InputError("--from-noise is the same for all seeds: give one")
    if any(text.rpartition("=")[0] in ("", stage) for text in overrides.get("steps", ())):
        raise InputError(f"--from-noise decides the steps of {stage}: give those of others")
    config[stage].guidance = 1.0


def _asked(
    prompts: Sequence[str], prompts_file: str | Path | None, seeds: Sequence[int] | None
) -> list[Asked]:
    """The prompts that were asked for, of flags and of a file, each with a seed of its own or None.

    Raises:
      InputError: if the file cannot be read, or has seeds although others are given.
    """
    asked: list[Asked] = [(prompt, None) for prompt in prompts]
    if prompts_file:
        path = as_path(prompts_file)
        asked += _read_prompts(path)
        if seeds is not None and any(seed is not None for _, seed in asked):
            raise InputError(f"{path} has seeds of its own: leave --seeds out")
    return asked


def _folder_for(
    asked: list[Asked], seeds: Sequence[int] | None, out: Path | None, part: str
) -> tuple[Outputs, list[Item], list[int]]:
    """Where items are made: in the folder given, or in the first default one for them.

    Returns:
      The folder, all items that it will hold, and the places of those asked for.
    """
    items = [
        (prompt, seed) for prompt, own in asked for seed in (seeds or [0] if own is None else [own])
    ]
    if not items:
        raise UsageError("give a --prompt or a file of --prompts")
    for folder in [as_path(out)] if out else _default_folders():
        outputs = Outputs(folder, part)
        found = outputs.items()
        if not found or {prompt for prompt, _ in found} & {prompt for prompt, _ in items}:
            return outputs, *_placed(found, items)
    raise InputError(f"{out} holds other prompts; give another --out")


def _default_folders() -> Iterator[Path]:
    yield DEFAULT_OUT
    yield from (DEFAULT_OUT.with_name(f"{DEFAULT_OUT}-{number}") for number in itertools.count(2))


def free_folder() -> Path:
    """The first of "outputs", "outputs-2", … that is not there."""
    return next(folder for folder in _default_folders() if not folder.exists())


def _placed(found: list[Item], items: list[Item]) -> tuple[list[Item], list[int]]:
    """A folder's items with new ones behind them, and the places of those asked for."""
    free: dict[Item, list[int]] = {}
    for place, item in enumerate(found):
        free.setdefault(item, []).append(place)
    every, places = list(found), []
    for item in items:
        if free.get(item):
            places.append(free[item].pop(0))
        else:
            places.append(len(every))
            every.append(item)
    return every, places


def _found(
    outputs: Outputs, asked: list[Asked], seeds: Sequence[int] | None
) -> tuple[list[Item], list[int]]:
    """The items that a folder holds, and the places of those to go on from: all, or those asked.

    Raises:
      InputError: if one that is asked for is not there.
    """
    found = outputs.items()
    if not found:
        raise InputError(f"{outputs.folder} holds no earlier stages to go on from; see --out")
    if any(prompt not in (known for known, _ in found) for prompt, _ in asked):
        raise InputError(f"{outputs.folder} holds other prompts; leave --prompt out to go on")
    prompts = asked or [(prompt, None) for prompt, _ in found]
    wanted = {
        (prompt, seed)
        for prompt, own in prompts
        for seed in ([own] if own is not None else seeds or [s for p, s in found if p == prompt])
    }
    if missing := sorted(wanted - set(found)):
        prompt, seed = missing[0]
        raise InputError(
            f"{outputs.folder} holds other seeds, not {seed} of {prompt[:60]!r}; leave --seed out "
            "to go on"
        )
    places = [place for place, item in enumerate(found) if item in wanted]
    return found, places


def _read_prompts(path: Path) -> list[Asked]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {why(error)}") from None
    texts = [line.strip() for line in lines if line.strip()]
    ignored: set[str] = set()
    prompts: list[Asked] = [(text, None) for text in texts]
    if path.suffix == ".jsonl":
        prompts = [_prompt(path, line, ignored) for line in texts]
    if not prompts:
        raise InputError(f"{path} holds no prompt; write one on each line")
    if ignored:
        logging.warning(
            '%s: only "prompt" and "seed" are read, not %s.', path, ", ".join(sorted(ignored))
        )
    return prompts


def _prompt(path: Path, line: str, ignored: set[str]) -> Asked:
    try:
        fields = json.loads(line)
        prompt, seed = fields.pop("prompt"), fields.pop("seed", None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        prompt = seed = None
    whole = seed is None or (isinstance(seed, int) and not isinstance(seed, bool))
    if not isinstance(prompt, str) or not whole:
        raise InputError(
            f'{path}: {line[:60]!r} is not like {{"prompt": "a red circle"}}, with a whole '
            'number as "seed" if you like'
        )
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise InputError(f"{path}: the seed {seed} does not lie within 0 to {MAX_SEED}")
    ignored.update(fields)
    return prompt, seed


def parse_seeds(text: str) -> list[int]:
    """Seeds such as "0-3,7", which are five.

    Raises:
      InputError: if they are not such.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part.strip())
        if match is None:
            raise InputError(f"--seeds {text!r}: give numbers and ranges such as 0-3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= MAX_SEED:
            raise InputError(f"--seeds {text!r}: give ranges that rise, of 0 to {MAX_SEED}")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text!r}: give each seed once")
    return seeds


def prepare(
    config: ConfigDict,
    checkpoint: Checkpoint | None,
    overrides: Mapping[str, Sequence[str]],
) -> list[Path]:
    """Puts flags into a config, and keeps compiled programs from here on.

    Args:
      config: as in `configs/show1.py`; changed.
      checkpoint: a converted checkpoint, or several.
      overrides: for "steps" and "guidance", a value for all stages or `stage=value`s.

    Returns:
      The checkpoints' folders.

    Raises:
      InputError: if there is none, or a value is wrong.
    """
    if not checkpoint:
        raise InputError("give --checkpoint: this config comes without one")
    if config.stage:
        known_stages.part(config.stage)
    use_compilation_cache()
    return_freed_memory()
    override(config, overrides)
    return as_paths(checkpoint)


def override(config: ConfigDict, overrides: Mapping[str, Sequence[str]]) -> None:
    """Sets "steps" and "guidance" in the stages' settings, from `value` or `stage=value`s.

    Raises:
      InputError: if a stage is unknown or a value no number.
    """
    for name, kind in (("steps", int), ("guidance", float)):
        _override(config, name, kind, overrides.get(name, ()))


def _override(
    config: ConfigDict, name: str, kind: type[int] | type[float], values: Sequence[str]
) -> None:
    names = known_stages.names()
    for text in values:
        stage, _, value = text.rpartition("=")
        try:
            number = kind(value)
        except ValueError:
            raise InputError(f"--{name}: {value!r} is not a number") from None
        if stage and stage not in names:
            raise InputError(f"--{name}: there is no stage {stage!r}, only {', '.join(names)}")
        for each in [stage] if stage else names:
            config[each][name] = number
