"""The kinds of inputs: from what they are made, how they are damaged, what is run on them."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.damage.box import Box
from tests.damage.configs import CONFIGS, FLAGS
from tests.damage.good import CONFIG, ROOT, sample, train
from tests.damage.media import CAPTIONS, CLIPS, LINES, NOISE, NPY, TEXTS, some
from tests.damage.weights import (
    PICKLES,
    SAFETENSORS,
    metadata,
    metadata_item,
    named,
    read_arrays,
    read_safetensors,
    write_arrays,
    write_safetensors,
)
from tests.damage.wreck import ANY, DEEP, JSON, NAMES, Damage, Random, edited, pick

Command = tuple[object, ...]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of damaged input.

    Attributes:
      good: what it is made of; see `good.Good`.
      command: the program to run, given the box and a random generator.
      damages: by name; each is given the folder that `good` was copied to.
      whole: whether the program writes all of its result or nothing.
      there: whether `good` is where the program writes.
      beside: what else of `good.Good` the program is given.
    """

    good: str
    command: Callable[[Box, Random], Command]
    damages: dict[str, Damage]
    whole: bool = False
    there: bool = False
    beside: tuple[str, ...] = ("checkpoint", "clips")


@dataclasses.dataclass(frozen=True)
class Case:
    """One damaged input."""

    kind: str
    number: int
    damage: str

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.kind}-{self.number:03d}"


def _all(*of: tuple[dict[str, Damage], str]) -> dict[str, Damage]:
    """Damages of the files that patterns find, by names that tell those apart."""
    return {
        f"{pattern.rpartition('/')[2]}: {name}": some(damage, pattern)
        for damages, pattern in of
        for name, damage in damages.items()
    }


def _convert(*flags: str) -> Callable[[Box, Random], Command]:
    return lambda box, rng: ("show1_jax.convert", box.given, box.result, *flags)


def _converted(name: str = "") -> Callable[[Box, Random], Command]:
    return lambda box, rng: ("show1_jax.convert", box.given / name, box.result, "--to-torch")


def _sample(*flags: str) -> Callable[[Box, Random], Command]:
    def command(box: Box, rng: Random) -> Command:
        filled = (flag.replace("IN", str(box.given)) for flag in flags)
        return *sample(_goods(box, "checkpoint")), *filled, f"--out={box.result}"

    return command


def _goods(box: Box, name: str) -> Path:
    """A good input beside a damaged one."""
    return box.folder.parent / "good" / name


KEYFRAMES = ("--stages=keyframes", "--prompt=a small red circle")


def _sample_given(box: Box, rng: Random) -> Command:
    """With the damaged checkpoint, keyframes or, for what only others have, an inverted clip."""
    flags = (*sample(box.given), f"--out={box.result}")
    if rng.random() < 0.5:
        return *flags, *KEYFRAMES
    return *flags, f"--invert={_goods(box, 'clips')}/0.mp4", "--stages=translation"


def _to_torch_or_sample(box: Box, rng: Random) -> Command:
    if rng.random() < 0.3:
        return "show1_jax.convert", box.given, box.result, "--to-torch"
    return *sample(box.given), f"--out={box.result}", *KEYFRAMES


def _adapter(box: Box, rng: Random) -> Command:
    files = [box.given / name for name in ("lora.safetensors", "whole.safetensors")]
    if rng.random() < 0.4:
        return "show1_jax.merge", _goods(box, "checkpoint"), box.result, *files
    flags = [f"--adapter={file}" for file in files]
    return *_sample(*KEYFRAMES)(box, rng), *flags


def _prompts(box: Box, rng: Random) -> Command:
    name = "prompts.jsonl" if (box.given / "damaged.jsonl").exists() else "prompts.txt"
    return _sample("--stages=keyframes", f"--prompts=IN/{name}")(box, rng)


def _lines(box: Box, rng: Random) -> Command:
    return _sample("--stages=keyframes", "--prompts=IN/prompts.jsonl")(box, rng)


def _clip(box: Box, rng: Random) -> Command:
    clip = box.given / "0.mp4"
    if rng.random() < 0.6:
        stage = pick(rng, ("keyframes", "keyframes", "interpolation", "translation"))
        return _sample(f"--invert={clip}", f"--stages={stage}", "--steps=1")(box, rng)
    return (
        ROOT / "train.py", f"--config={CONFIG}:customize", f"--config.video={clip}",
        "--config.prompt=in a loop", f"--config.checkpoint={_goods(box, 'checkpoint')}",
        f"--config.out={box.result}/adapter.safetensors",
    )  # fmt: skip


def _clips(box: Box, rng: Random) -> Command:
    return train("vae", box.result / "work", box.result / "data", box.given)


def _run(box: Box, rng: Random) -> Command:
    command = train("vae", box.result / "work", box.result / "data", _goods(box, "clips"))
    if rng.random() < 0.15:
        return *command, "--curve"
    return *command, "--config.train.vae.steps=3"


def _text(box: Box, rng: Random) -> Command:
    """A run that begins anew, its data as they are."""
    command = train("keyframes", box.result / "new", box.result / "data", _goods(box, "clips"))
    checkpoint = _goods(box, "checkpoint")
    return *command, f"--config.checkpoint={checkpoint}", "--config.train.keyframes.steps=1"


def _outputs(box: Box, rng: Random) -> Command:
    stages = pick(rng, ("interpolation", "interpolation", "keyframes,interpolation"))
    return *_sample(f"--stages={stages}")(box, rng), "--config.translation.fps=7.5"


def _judged(box: Box, rng: Random) -> Command:
    stages = pick(rng, ("", "", "interpolation"))
    return (
        "show1_jax.shapes", *sample(_goods(box, "checkpoint"))[1:], f"--out={box.result}",
        "--count=1", f"--stages={stages}",
    )  # fmt: skip


def _config(box: Box, rng: Random) -> Command:
    config, checkpoint = box.given / "small.py", _goods(box, "checkpoint")
    if rng.random() < 0.5:
        return *sample(checkpoint, config), *KEYFRAMES, f"--out={box.result}"
    program, _, *others = train("vae", box.result / "w", box.result / "d", _goods(box, "clips"))
    return program, f"--config={config}:vae", *others


def _flags(box: Box, rng: Random) -> Command:
    flags = json.loads((box.given / "flags.json").read_text())
    if flags[0] == "train":
        command = train("vae", box.result / "w", box.result / "d", _goods(box, "clips"))
    else:
        command = *sample(_goods(box, "checkpoint")), *KEYFRAMES, f"--out={box.result}"
    return *command, *flags[1:]


def _given_flags(program: str, flag: str) -> Damage:
    return lambda folder, rng: (folder / "flags.json").write_text(json.dumps([program, flag]))


def _new_network(box: Box, rng: Random) -> Command:
    """A run that starts from a damaged network."""
    command = train("keyframes", box.result / "work", box.result / "data", _goods(box, "clips"))
    flags = (f"--config.checkpoint={_goods(box, 'checkpoint')}",)
    init = f"--config.train.keyframes.init={box.given}/show-1-base/unet"
    return *command, *flags, init, "--config.train.keyframes.steps=1"


def _removed(pattern: str) -> Damage:
    """Removes what a pattern finds first, file or folder."""
    from tests.damage.wreck import remove

    return lambda folder, rng: remove(pick(rng, sorted(folder.glob(pattern))))


def _moved(pattern: str, name: str) -> Damage:
    def damage(folder: Path, rng: Random) -> None:
        path = sorted(folder.glob(pattern))[-1]
        path.rename(path.with_name(name))

    return damage


def _line(text: str, last: bool) -> Damage:
    """Puts a line among those of a file, or at its end."""

    def damage(path: Path, rng: Random) -> None:
        first, *others = path.read_text().splitlines(keepends=True)
        lines = [first, *others, text] if last else [first, text + "\n", *others]
        path.write_text("".join(lines), errors="surrogateescape")

    return damage


METRICS: dict[str, Damage] = {
    f"{text[:12]!r} {'last' if last else 'within'}": _line(text, last)
    for text in ("{", '"a"', "5", "[]", "{}", '{"step": "a"}', '{"step": null}', '{"step": NaN}',
                 "\udcff", '{"step": 1, "loss": "a"}', "[" * DEEP)
    for last in (False, True)
}  # fmt: skip

POSITION = "work/vae/checkpoints/2/data/metadata"

ADAPTERS: dict[str, Damage] = {
    **{
        f"{key} {n}": metadata_item(key, value)
        for key, values in {
            "base": (5, None, ["a"], "", "another", "\ud800"),
            "digest": (5, None, ["a"], "", "another"),
            "timesteps": (
                5, None, ["a"], "", "[5]", "[5, 1]", "[-1, 3]", "[0, 1e9]", "[0, 9999999999999999]",
                f"[0, {'9' * 5000}]", "[\u0663, \u0664]", "[0.0, 1.0]",
            ),
            "lora_adapter_metadata": (
                5, None, ["a"], "", "{", "[]", "5", "null", '{"r": 0}', '{"r": -1}', '{"r": null}',
                '{"unet.r": NaN}', '{"unet.lora_alpha": Infinity}', '{"r": "2"}', '{"r": true}',
                '{"r": [2]}', '{"r": 2, "lora_alpha": 1e400}', '{"use_dora": true}', "[" * DEEP,
                '{"a": ' + "[" * DEEP + "]" * DEEP + "}", f'{{"r": {"9" * 400}}}', '{"r": 1e-320}',
            ),
            "prompts": (5, None, "\ud800"),
        }.items()
        for n, value in enumerate(values)
    },
    "no metadata": metadata({}),
    "no digest": metadata({"format": "pt"}),
}  # fmt: skip


def _tensors(change: Callable[[str, np.ndarray], dict[str, np.ndarray]]) -> Damage:
    """Writes the first tensor otherwise, without what would tell."""

    def damage(path: Path, rng: Random) -> None:
        arrays = read_arrays(path)
        key = next(iter(arrays))
        changed = change(key, arrays.pop(key))
        write_arrays(path, changed | arrays)

    return damage


def _unlike_digest(path: Path, rng: Random) -> None:
    header, tensors = read_safetensors(path)
    write_safetensors(path, header, bytes(reversed(tensors)))


CHANGES: dict[str, Damage] = {
    "no half": _tensors(lambda key, array: {}),
    "other name": _tensors(lambda key, array: {"unet.nothing.lora_A.weight": array}),
    "text encoder": _tensors(lambda key, array: {f"text_encoder.{key}": array}),
    "prefix twice": _tensors(lambda key, array: {f"unet.{key}": array}),
    "no rank": _tensors(lambda key, array: {key: array[:0]}),
    "other rank": _tensors(lambda key, array: {key: np.concatenate([array, array])}),
    "more axes": _tensors(lambda key, array: {key: array[None]}),
    "fewer axes": _tensors(lambda key, array: {key: array.ravel()}),
    "scalar": _tensors(lambda key, array: {key: np.array(1, np.float32)}),
    "whole numbers": _tensors(lambda key, array: {key: np.ones(array.shape, np.int64)}),
    "half precision": _tensors(lambda key, array: {key: array.astype(np.float16)}),
    "not a number": _tensors(lambda key, array: {key: array * np.float32(np.nan)}),
    "huge": _tensors(lambda key, array: {key: np.full(array.shape, 3e38, np.float32)}),
    "both": _tensors(
        lambda key, array: {key: array, f"{key.split('.lora')[0]}.weight.diff": array}
    ),
    "other tensors": _unlike_digest,
    "no suffix": _tensors(lambda key, array: {key.rpartition(".lora")[0] or "x": array}),
}


def _component(value: Any, name: str | None = None) -> Damage:
    """What a pipeline's index says of a part."""

    def change(index: dict[str, Any], rng: Random) -> None:
        index[name or pick(rng, [key for key in index if not key.startswith("_")])] = value

    return edited(change)


UNET = ["showone", "UNet3DConditionModel"]
INDEX: dict[str, Damage] = {
    **{
        f"part {name[:12]!r}": _component(UNET, name)
        for name in ("../outside", "..", ".", "/etc", "", "a\0b", "x" * 300, "\ud800", "unet/..")
    },
    "no library": _component(["UNet3DConditionModel"]),
    "no class": _component([None, None]),
    "number as class": _component(["diffusers", 5]),
    "list as class": _component(["diffusers", ["UNet3DConditionModel"]]),
    "another class": _component(["diffusers", "AutoencoderKL"]),
    "odd pipeline": edited(lambda index, rng: index.update(_class_name=["a"])),
}

TOKENIZERS: dict[str, Damage] = {
    f"{key} {n}": edited(lambda value, rng, key=key, new=new: value.update({key: new}))
    for key, values in {
        "eos_token": (None, 5, "", "nothing", ["a"], {}, {"content": None}, "\ud800"),
        "pad_token": ("<unk>", {"content": ["a"]}, "\ud800"),
        "extra_ids": (None, "a", -1, 1e9, 10**12, 0.5, float("nan"), float("inf"), [1], "5", True),
        "unk_token": (None, "nothing"),
    }.items()
    for n, new in enumerate(values)
}

PARAMS = "show-1-base/*/params"
KINDS: dict[str, Kind] = {
    "safetensors": Kind(
        "release/IF-II-L-v1.0",
        _convert(),
        _all((SAFETENSORS, "unet/*.safetensors"), (ANY, "unet/*.safetensors")),
        whole=True,
        beside=(),
    ),
    "pickle": Kind(
        "release/show-1-interpolation",
        _convert(),
        _all((PICKLES, "text_encoder/*1-of*.bin"), (ANY, "*/*.bin")),
        whole=True,
        beside=(),
    ),
    "shards": Kind(
        "release/show-1-interpolation",
        _convert(),
        _all((named(len(NAMES)), "*/*.index.json"), (JSON, "*/*.index.json")),
        whole=True,
        beside=(),
    ),
    "released": Kind(
        "release/show-1-interpolation",
        _convert(),
        _all(
            (INDEX, "model_index.json"),
            (JSON, "unet/config.json"),
            (JSON, "text_encoder/config.json"),
            (JSON, "*/scheduler_config.json"),
            (ANY, "*/*.json"),
        ),
        whole=True,
        beside=(),
    ),
    "origin": Kind(
        "converted",
        _converted(),
        _all((named(len(NAMES)), "*/torch_files.json"), (JSON, "*/torch_files.json")),
        whole=True,
        beside=(),
    ),
    "converted": Kind(
        "checkpoint",
        _to_torch_or_sample,
        _all(
            (ANY, f"{PARAMS}/*_*"),
            (ANY, f"{PARAMS}/**/d/*"),
            (ANY, f"{PARAMS}/**/manifest.ocdbt"),
            (JSON, f"{PARAMS}/_METADATA"),
            (JSON, f"{PARAMS}/array_metadatas/process_0"),
        )
        | {
            "no folder d": _removed(f"{PARAMS}/d"),
            "no process": _removed(f"{PARAMS}/ocdbt.process_0"),
            "no params": _removed(PARAMS),
            "no network": _removed("show-1-base/*"),
        },
    ),
    "configured": Kind(
        "checkpoint",
        _sample_given,
        _all(
            (INDEX, "show-1-base/model_index.json"),
            (JSON, "show-1-base/unet/config.json"),
            (JSON, "show-1-base/text_encoder/config.json"),
            (JSON, "*/scheduler/scheduler_config.json"),
            (JSON, "show-1-sr2/[tv]*[er]/config.json"),
        ),
    ),
    "tokenizer": Kind(
        "checkpoint",
        _sample_given,
        _all(
            (TOKENIZERS, "show-1-base/tokenizer/tokenizer_config.json"),
            (ANY, "show-1-base/tokenizer/spiece.model"),
            (JSON, "show-1-base/tokenizer/*.json"),
            (JSON, "show-1-sr2/tokenizer/*.json"),
            (ANY, "show-1-sr2/tokenizer/*"),
        ),
    ),
    "adapter": Kind(
        "adapters",
        _adapter,
        _all(
            (ADAPTERS, "lora.safetensors"),
            (CHANGES, "*.safetensors"),
            (SAFETENSORS, "*.safetensors"),
            (ANY, "*.safetensors"),
        ),
    ),
    "noise": Kind(
        "noise",
        _sample("--from-noise=IN/keyframes.noise.npz", *KEYFRAMES),
        _all((NOISE, "*.npz"), (ANY, "*.npz")),
    ),
    "prompts": Kind(
        "prompts",
        _prompts,
        _all((TEXTS, "prompts.txt"), (ANY, "prompts.txt")),
    ),
    "lines": Kind(
        "prompts",
        _lines,
        _all((LINES, "prompts.jsonl"), (TEXTS, "prompts.jsonl"), (ANY, "prompts.jsonl")),
    ),
    "clip": Kind("clips", _clip, _all((CLIPS, "0.mp4"), (ANY, "0.mp4"))),
    "clips": Kind(
        "clips",
        _clips,
        _all((CAPTIONS, "*.csv"), (CLIPS, "*.mp4"), (ANY, "*.mp4"), (ANY, "*.csv")),
    ),
    "run": Kind(
        "run",
        _run,
        _all(
            (METRICS, "work/vae/metrics.jsonl"),
            (JSON, "work/vae/config.json"),
            (JSON, POSITION),
            (ANY, "work/vae/*.json*"),
            (ANY, "work/vae/checkpoints/2/**/_*"),
            (ANY, "work/vae/checkpoints/2/**/d/*"),
            (ANY, "work/checkpoint/**/*.json"),
            (ANY, "work/checkpoint/**/_*"),
        )
        | {
            "no last step": _removed("work/vae/checkpoints/2"),
            "no state": _removed("work/vae/checkpoints/2/state"),
            "no data": _removed("work/vae/checkpoints/2/data"),
            "no part": _removed("work/vae/checkpoints/2/state/*"),
            "no settings": _removed("work/vae/config.json"),
            "no samples": _removed("work/vae/samples"),
            "no checkpoints": _removed("work/vae/checkpoints"),
            "a later step": _moved("work/vae/checkpoints/*", "9"),
            "a step of words": _moved("work/vae/checkpoints/*", "last"),
            "a negative step": _moved("work/vae/checkpoints/*", "-1"),
        },
        there=True,
    ),
    "dataset": Kind(
        "text",
        _text,
        _all(
            (ANY, "data/clips/*/index"),
            (ANY, "data/text/*/*"),
            (JSON, "data/text/*/*.json"),
            (NPY, "data/text/*/*.npy"),
        ),
        there=True,
    ),
    "outputs": Kind(
        "outputs",
        _outputs,
        _all(
            (JSON, "000/metadata.json"),
            (NPY, "000/keyframes.npy"),
            (ANY, "00*/*"),
            (ANY, "manifest.jsonl"),
        )
        | {"an item missing": _removed("00*"), "another item": _moved("001", "007")},
        there=True,
    ),
    "judged": Kind(
        "judged",
        _judged,
        _all((JSON, "items.json"), (NPY, "000-keyframes.npy"), (ANY, "*.*")),
        there=True,
    ),
    "init": Kind(
        "checkpoint",
        _new_network,
        _all((JSON, "show-1-base/unet/config.json"), (ANY, "show-1-base/unet/params/**/*")),
    ),
    "config": Kind("config", _config, _all((CONFIGS, "small.py"), (ANY, "small.py"))),
    "flags": Kind(
        "config",
        _flags,
        {f"{program} {flag[:40]}": _given_flags(program, flag) for program, flag in FLAGS},
    ),
}


def cases(seed: int, count: int | None = None, only: Sequence[str] = ()) -> list[Case]:
    """Cases of all kinds, as many of each as its damages' share.

    Args:
      seed: decides the order of the damages.
      count: how many; None for one of each damage.
      only: kinds to leave the others out.
    """
    found: list[tuple[float, Case]] = []
    chosen = {name: kind for name, kind in KINDS.items() if not only or name in only}
    total = sum(len(kind.damages) for kind in chosen.values())
    rounds = -(-(count or total) // total)
    for name, kind in chosen.items():
        damages = list(kind.damages)
        order = np.random.default_rng((seed, zlib.crc32(name.encode()))).permutation(len(damages))
        for number in range(rounds * len(damages)):
            damage = damages[order[number % len(damages)]]
            found.append(((number + 0.5) / len(damages), Case(name, number, damage)))
    found.sort(key=lambda each: each[0])
    return [case for _, case in found[:count]]
