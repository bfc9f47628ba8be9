"""Trains the cascade, or one part of it.

    python train.py --config configs/tiny.py --workdir runs/tiny              # everything, in order
    python train.py --config configs/show1.py:image --workdir runs/show1      # one part

    python train.py --config configs/customize.py --config.video=clip.mp4 \
        --config.prompt="what it shows"                                       # a motion from a clip

A run that was interrupted goes on where it was: give the same command again.
Each part ends up in WORKDIR/checkpoint, which `sample.py --checkpoint` reads.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from show1_jax import commands

CONFIG = commands.define_config(
    "What to train (default: configs/tiny.py); FILE:PART for one part of "
    "vae, image, keyframes, interpolation, first_frame, super_resolution, translation; "
    "--config.KEY=VALUE changes it."
)
WORKDIR = commands.define_path("workdir", "The folder of the runs.")
AOT, JSON = commands.define_aot()
commands.define_hosts()
CURVE = flags.DEFINE_bool("curve", False, "Only draw the losses so far, WORKDIR/PART/loss.png.")


def main() -> None:
    """Makes one call of the flags."""
    from show1_jax.errors import InputError

    customized = "customize" in CONFIG.value
    section = "customize" if customized else "train.PART"
    for name in ("batch_size", "dtype"):
        if name in config_flags.get_override_values(flags.FLAGS["config"]):
            raise InputError(f"--config.{name} is for sampling: give --config.{section}.{name}")
    if customized and (WORKDIR.value or CURVE.value or flags.FLAGS.coordinator):
        raise InputError("customizing takes one process, and --config.out, not --workdir")

    # Here, so that --help and wrong flags do not wait for JAX.
    if AOT.value:
        commands.only_compile()
        from show1_jax.aot import programs

        programs.predict_training(CONFIG.value, AOT.value, JSON.value)
        return
    if JSON.value:
        raise InputError("--json is for --aot")
    if customized:
        from show1_jax.adapters.customize import customize

        commands.use_compilation_cache()
        customize(CONFIG.value)
        return
    if WORKDIR.value is None:
        raise InputError("give --workdir, the folder of the runs")
    from show1_jax import stages
    from show1_jax.training import loop, metrics

    if CURVE.value:
        begun = [part for part in stages.parts() if (WORKDIR.value / part).is_dir()]
        parts = [CONFIG.value.stage] if CONFIG.value.stage else begun
        if not parts:
            raise InputError(f"{WORKDIR.value} has no runs")
        for part in parts:
            print(metrics.loss_curve(WORKDIR.value / part))
        return
    commands.join_hosts(preemptible=True)
    commands.use_compilation_cache()
    loop.train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    commands.run(main, Path(__file__).parent / "configs" / "tiny.py")
