"""`show1-train`, which is also `train.py`: the cascade, a part of it, or a motion from a clip."""

import argparse
from collections.abc import Sequence

from show1_jax.cli import flags
from show1_jax.cli.flags import PathFlag
from show1_jax.cli.program import Parser, run
from show1_jax.errors import InputError, UsageError

EXAMPLES = """\
  %(prog)s --config tiny --workdir runs/tiny            # the whole tiny cascade, in order
  %(prog)s --config tiny:image --workdir runs/tiny      # one part of it
  %(prog)s --config tiny:image --workdir runs/tiny --curve
  %(prog)s --config show1:keyframes --workdir runs/show1 --config.checkpoint=checkpoints/show1 \\
      --config.train.keyframes.init=keyframes --config.train.keyframes.dataset=FOLDER_OF_CLIPS
  %(prog)s --config customize --config.video=clip.mp4 --config.prompt="what it shows" \\
      --config.out=clip.safetensors                     # a motion from a clip
  %(prog)s --config show1:keyframes --aot v5e:16x16
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        ("show1-train", "train.py"),
        "--workdir DIR [flags]",
        "Train the cascade, or one part of it.\n\n"
        "A run that was interrupted goes on: give the same command again. Each part ends in\n"
        "WORKDIR/checkpoint, which sampling reads by --checkpoint.",
        EXAMPLES,
    )
    runs = made.add_argument_group("runs")
    runs.add_argument("--workdir", action=PathFlag, metavar="DIR", help="the folder of the runs")
    runs.add_argument(
        "--curve", action="store_true", help="only draw the losses so far, WORKDIR/PART/loss.png"
    )
    flags.add_config(
        made,
        "tiny",
        "; ARG is one part of vae, image, keyframes, interpolation, first_frame, "
        "super_resolution, translation",
    )
    flags.add_aot(made)
    flags.add_hosts(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    config = args.config
    customized = "customize" in config
    section = "customize" if customized else "train.PART"
    for name in ("batch_size", "dtype"):
        if name in args.changed:
            raise UsageError(f"--config.{name} is for sampling: give --config.{section}.{name}")
    if customized and (args.workdir or args.curve or args.coordinator):
        raise UsageError("customizing takes one process, and --config.out, not --workdir")
    if args.json and not args.aot:
        raise UsageError("--json is for --aot")
    if args.workdir is None and not (customized or args.aot):
        raise UsageError("give --workdir, the folder of the runs")

    from show1_jax.compilation import only_compile, use_compilation_cache

    if args.aot:
        from show1_jax.aot import programs

        only_compile()
        programs.predict_training(config, args.aot, args.json)
        return
    if customized:
        from show1_jax.adapters.customize import customize

        use_compilation_cache()
        customize(config)
        return
    if args.curve:
        _draw(args)
        return
    from show1_jax.training import loop

    flags.join_hosts(args, preemptible=True)
    use_compilation_cache()
    loop.train(config, args.workdir)


def _draw(args: argparse.Namespace) -> None:
    from show1_jax import stages
    from show1_jax.training import metrics

    begun = [part for part in stages.parts() if (args.workdir / part).is_dir()]
    parts = [args.config.stage] if args.config.stage else begun
    if not parts:
        raise InputError(f"{args.workdir} has no runs")
    for part in parts:
        print(metrics.loss_curve(args.workdir / part))
