"""`show1-sample`, which is also `sample.py`: videos from prompts."""

import argparse
from collections.abc import Sequence

from etils.epath import Path

from show1_jax.cli import flags
from show1_jax.cli.flags import PathFlag
from show1_jax.cli.program import Parser, run
from show1_jax.errors import UsageError

EXAMPLES = """\
  %(prog)s --prompt "a small red circle moving left on a black background"
  %(prog)s --prompts prompts.txt --seeds 0-3 --out DIR     # four videos of each line
  %(prog)s --prompt "..." --stages keyframes --out DIR     # stop early ...
  %(prog)s --stages interpolation,first_frame --out DIR    # ... and go on
  %(prog)s --prompt "..." --steps keyframes=20,translation=30 --guidance keyframes=3
  %(prog)s --config show1 --checkpoint checkpoints/show1 --prompt "..."
  %(prog)s --prompt "..." --adapter circle.safetensors=0.5
  %(prog)s --invert clip.mp4 --prompt "what it shows" --out DIR
  %(prog)s --from-noise DIR/keyframes.noise.npz --prompt "another look"
  %(prog)s --config show1 --aot v5e:1 --stages t5,keyframes --json
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        ("show1-sample", "sample.py"),
        '--prompt "TEXT" [flags]',
        "Make videos from prompts.\n\n"
        "The first is OUT/000/translation.mp4. Beside it are the clips of all earlier stages.",
        EXAMPLES,
    )
    what = made.add_argument_group("what to make")
    what.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT",
        help="what to show; may be given several times",
    )  # fmt: skip
    what.add_argument(
        "--prompts", metavar="FILE",
        help='a text file with a prompt on each line, or a .jsonl with a "prompt" on each and, if '
        'you like, a "seed"',
    )  # fmt: skip
    what.add_argument(
        "--seeds", "--seed", metavar="SEEDS",
        help="random seeds such as 0-3,7; each makes a video of every prompt (default: 0)",
    )  # fmt: skip
    what.add_argument(
        "--out", action=PathFlag, metavar="DIR",
        help="the folder to write (default: outputs, or outputs-2, ... beside other prompts)",
    )  # fmt: skip
    what.add_argument(
        "--overwrite", action="store_true", help="replace results in OUT that other settings made"
    )
    how = made.add_argument_group("how to make it")
    flags.add_checkpoint(how)
    how.add_argument(
        "--stages", type=flags.listed, metavar="NAMES",
        help="the stages to run, such as keyframes,interpolation (default: all that the "
        "checkpoint has)",
    )  # fmt: skip
    flags.add_sampling(how)
    how.add_argument(
        "--adapter", action="append", default=[], metavar="FILE[=WEIGHT]",
        help="what training made of a clip; may be given several times",
    )  # fmt: skip
    many = made.add_argument_group("many items")
    many.add_argument(
        "--shard", metavar="I/N",
        help="make every N-th item from the I-th on, 0/N to N-1/N: for jobs that do not know of "
        "each other",
    )  # fmt: skip
    many.add_argument(
        "--merge", action="store_true",
        help="make nothing: tell which items of --out are missing, and join its manifests",
    )  # fmt: skip
    many.add_argument(
        "--format", choices=("folders", "webdataset"), default="folders",
        help="with --merge, webdataset also packs the last stage's videos into OUT/shards/*.tar",
    )  # fmt: skip
    clips = made.add_argument_group("from a clip")
    clips.add_argument(
        "--invert", action=PathFlag, metavar="CLIP",
        help="only find the noise from which the stage in --stages (keyframes) makes this clip: "
        "OUT/STAGE.noise.npz",
    )  # fmt: skip
    clips.add_argument(
        "--from-noise", action=PathFlag, metavar="FILE",
        help="start the file's stage from such noise",
    )  # fmt: skip
    flags.add_config(made, "tiny")
    flags.add_aot(made)
    flags.add_hosts(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    if args.json and not args.aot:
        raise UsageError("--json is for --aot")
    if args.merge:
        _merge(args)
        return
    if args.format != "folders":
        raise UsageError("--format webdataset is for --merge")
    config, checkpoint = args.config, flags.checkpoint(args)
    flags.check_stages(args, ("t5", "clip") if args.aot else ())
    if args.aot:
        from show1_jax.aot import programs  # with all of training
        from show1_jax.compilation import only_compile
        from show1_jax.generate import override

        only_compile()
        override(config, flags.overrides(args))
        programs.predict_sampling(config, args.stages or None, args.aot, args.json)
        return
    from show1_jax.generate import generate, parse_seeds, parse_shard
    from show1_jax.stages import STAGES

    if args.adapter:
        config[STAGES[0].name].adapters = tuple(args.adapter)
    seeds = None if args.seeds is None else flags.read(parse_seeds, args.seeds)
    shard = None if args.shard is None else flags.read(parse_shard, args.shard)
    if shard and args.out is None:
        raise UsageError("--shard needs --out, the folder that all shards share")
    if args.invert:
        _invert(args, checkpoint, seeds)
        return
    if args.from_noise:
        config.from_noise = str(args.from_noise)
    flags.join_hosts(args, preemptible=False)
    generate(
        config,
        checkpoint=checkpoint,
        prompts=args.prompt,
        prompts_file=args.prompts,
        seeds=seeds,
        out=args.out,
        stages=args.stages or None,
        overrides=flags.overrides(args),
        overwrite=args.overwrite,
        shard=shard,
    )


def _merge(args: argparse.Namespace) -> None:
    if args.out is None or args.prompt or args.prompts or args.shard:
        raise UsageError("--merge takes --out and --format alone")
    from show1_jax.generate import merge_shards

    print(merge_shards(args.out, args.format == "webdataset"))


def _invert(args: argparse.Namespace, checkpoint: list[str], seeds: list[int] | None) -> None:
    from show1_jax.generate import free_folder
    from show1_jax.invert import invert_clip
    from show1_jax.stages import STAGES

    clip: Path = args.invert
    stages, seeds, prompts = args.stages or [STAGES[0].name], seeds or [0], args.prompt or [""]
    others = (args.prompts, args.guidance, args.from_noise, args.coordinator)
    if any(others) or max(len(given) for given in (stages, seeds, prompts)) > 1:
        raise UsageError(
            "--invert takes one --prompt, --seed and stage of --stages, --adapter, --steps and "
            "--out alone"
        )
    if any(text.rpartition("=")[0] not in ("", stages[0]) for text in args.steps):
        raise UsageError(f"--invert runs {stages[0]} alone: give its --steps")
    steps = [*([] if f"{stages[0]}.steps" in args.changed else ["50"]), *args.steps]
    out = args.out or free_folder()
    invert_clip(
        args.config, checkpoint, clip, prompts[0], out, steps=steps, name=stages[0], seed=seeds[0]
    )
