"""One run of `sample.py`: from flags to files."""

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from show1_jax.commands import use_compilation_cache
from show1_jax.errors import InputError
from show1_jax.outputs import Outputs
from show1_jax.parallel import hosts
from show1_jax.stages.cascade import STAGES, Cascade
from show1_jax.stages.inversion import load_noise

DEFAULT_OUT = Path("outputs")


def generate(
    config: ConfigDict,
    checkpoint: str | None,
    prompts: Sequence[str],
    prompts_file: str | None,
    seeds: Sequence[int] | None,
    out: Path | None,
    stages: Sequence[str] | None,
    overrides: Mapping[str, Sequence[str]],
) -> None:
    """Samples prompts and writes their videos.

    Of several processes, each makes every n-th item on its own devices.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      prompts: the prompts themselves.
      prompts_file: more of them: one on each line, or a .jsonl with a "prompt" on each.
      seeds: the random seeds, each of which makes an item of each prompt; None
        for 0, or for those of `out`.
      out: the folder to write; None for "outputs", or the first of "outputs-2", …
        without other items. What is there of these items is not made again.
        If it already holds the stages that `stages` go on from, prompts and
        seeds may be left out.
      stages: the stages to run; None for all that the checkpoint has.
      overrides: for "steps" and "guidance", a value for all stages or `stage=value`s.

    Raises:
      InputError: if anything given is wrong, or an item failed; the others are made.
    """
    if config.from_noise:
        _start_from_noise(config, seeds, overrides)
    folder = prepare(config, checkpoint, overrides)
    asked = [*prompts, *(_read_prompts(Path(prompts_file).expanduser()) if prompts_file else ())]
    cascade = Cascade(config, folder, stages, jax.local_devices())
    with hosts.first_alone("items"):
        if not cascade.inputs(cascade.stages[0]):
            items = [(prompt, seed) for prompt in asked for seed in seeds or [0]]
            outputs = _folder_for(items, out)
        else:
            outputs = Outputs(out or DEFAULT_OUT, keeper=hosts.first())
            items = _found(outputs, asked, seeds)
        all_prompts, all_seeds = [prompt for prompt, _ in items], [seed for _, seed in items]
        cascade.check_inputs(len(items), outputs)
        outputs.begin(all_prompts, all_seeds)
    own = range(jax.process_index(), len(items), jax.process_count())
    with contextlib.closing(Bars(hosts.first())) as bars:
        cascade.run(all_prompts, all_seeds, outputs, bars.update, own)
    outputs.failures = [
        tuple(failure) for each in hosts.gather(outputs.failures) for failure in each
    ]
    if jax.process_count() > 1:
        outputs.write_manifest()
    if outputs.failures:
        item, stage, why = outputs.failures[0]
        raise InputError(
            f"{len(outputs.failures)} of {len(items)} item(s) failed: {stage} of item {item}: {why}"
            + (f"; see {outputs.folder}/manifest.jsonl" if outputs.failures[1:] else "")
        )
    made, removed = (sum(hosts.gather(each)) for each in (outputs.made, outputs.removed))
    stages = cascade.stages
    kept = len(items) * len(stages) - made
    hosts.say(
        f"{len(items)} item(s) in {outputs.folder}: {', '.join(stages)}; {made} result(s) made, "
        f"{kept} there already"
        + (f", {removed} earlier result(s) removed" if removed else "")
        + f"; see {outputs.shown(0, stages[-1])}"
    )


def _start_from_noise(
    config: ConfigDict, seeds: Sequence[int] | None, overrides: Mapping[str, Sequence[str]]
) -> None:
    """Unless it is asked for, the stage of the noise is not guided: that leads away from the clip.

    Raises:
      InputError: if the noise is damaged, or what it decides is asked for otherwise.
    """
    stage = load_noise(Path(config.from_noise).expanduser()).stage
    if len(seeds or ()) > 1:
        raise InputError("--from-noise is the same for all seeds: give one")
    if any(text.rpartition("=")[0] in ("", stage) for text in overrides.get("steps", ())):
        raise InputError(f"--from-noise decides the steps of {stage}: give those of others")
    config[stage].guidance = 1.0


def _folder_for(items: list[tuple[str, int]], out: Path | None) -> Outputs:
    """The folder given, or the first of the default ones, that holds no other items."""
    if not items:
        raise InputError("give a --prompt or a file of --prompts")
    others = (DEFAULT_OUT.with_name(f"{DEFAULT_OUT}-{number}") for number in itertools.count(2))
    for folder in [out] if out else itertools.chain([DEFAULT_OUT], others):
        outputs = Outputs(folder, keeper=hosts.first())
        found = outputs.items()
        # A run that was cut off as it began may have left the first of them only.
        if found == items[: len(found)]:
            return outputs
    raise InputError(f"{out} holds other prompts or seeds; give another --out")


def _found(
    outputs: Outputs, asked: list[str], seeds: Sequence[int] | None
) -> list[tuple[str, int]]:
    """The items that a folder holds, to go on from; those asked for must be the same."""
    found = outputs.items()
    if not found:
        raise InputError(f"{outputs.folder} holds no earlier stages to go on from; see --out")
    if asked and set(asked) != {prompt for prompt, _ in found}:
        raise InputError(f"{outputs.folder} holds other prompts; leave --prompt out to go on")
    if seeds is not None and set(seeds) != {own for _, own in found}:
        raise InputError(f"{outputs.folder} holds other seeds; leave --seed out to go on")
    return found


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if path.suffix == ".jsonl":
        prompts = [_prompt(path, line) for line in prompts]
    if not prompts:
        raise InputError(f"{path} holds no prompt; write one on each line")
    return prompts


def _prompt(path: Path, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise InputError(f'{path}: {line[:60]} is not like {{"prompt": "a red circle"}}')
    return prompt


def parse_seeds(text: str) -> list[int]:
    """Seeds such as "0-3,7", which are five.

    Raises:
      InputError: if they are not such.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise InputError(f"--seeds {text!r}: give numbers and ranges such as 0-3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < 2**32:
            raise InputError(f"--seeds {text!r}: give ranges that rise, of 0 to {2**32 - 1}")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text!r}: give each seed once")
    return seeds


def prepare(
    config: ConfigDict, checkpoint: str | None, overrides: Mapping[str, Sequence[str]]
) -> Path:
    """Puts flags into a config, and keeps compiled programs from here on.

    Args:
      config: as in `configs/show1.py`; changed.
      checkpoint: a converted checkpoint.
      overrides: for "steps" and "guidance", a value for all stages or `stage=value`s.

    Returns:
      The checkpoint's folder.

    Raises:
      InputError: if there is none, or a value is wrong.
    """
    if not checkpoint:
        raise InputError("give --checkpoint: this config comes without one")
    use_compilation_cache()
    override(config, overrides)
    return Path(checkpoint).expanduser()


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
    for text in values:
        stage, _, value = text.rpartition("=")
        try:
            number = kind(value)
        except ValueError:
            raise InputError(f"--{name}: {value!r} is not a number") from None
        if stage and stage not in STAGES:
            raise InputError(f"--{name}: there is no stage {stage!r}, only {', '.join(STAGES)}")
        for each in [stage] if stage else STAGES:
            config[each][name] = number


class Bars:
    """A progress bar with the time left for each stage, one below the other."""

    def __init__(self, shown: bool = True) -> None:
        self._bars: dict[str, tqdm] = {}
        self._shown = shown

    def close(self) -> None:
        """Leaves the bars as they are."""
        for bar in self._bars.values():
            bar.close()

    def update(self, stage: str, done: int, steps: int) -> None:
        """Shows that `done` of a stage's `steps` are done."""
        if stage not in self._bars:
            self._bars[stage] = tqdm(
                total=steps, desc=stage, unit="step", file=sys.stderr, disable=not self._shown
            )
        bar = self._bars[stage]
        bar.update(done - bar.n)
        if done == steps:
            bar.close()
