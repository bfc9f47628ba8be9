"""Makes videos from prompts.

    python sample.py --prompt "a small red circle moving left on a black background"

writes outputs/000/translation.mp4 and the clip of every stage before it; see
`--help` for the rest. `--stages keyframes` stops early; `--stages
interpolation,first_frame --out OUT` goes on from what is there.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from show1_jax import commands

CONFIG = commands.define_config(
    "How to sample (default: configs/tiny.py); --config.KEY=VALUE changes it."
)
CHECKPOINT, STEPS, GUIDANCE = commands.define_sampling()
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to show; may be given several times.")
PROMPTS = flags.DEFINE_string(
    "prompts", None, 'A text file with a prompt on each line, or .jsonl with a "prompt" on each.'
)
SEEDS = flags.DEFINE_string(
    "seeds", None, "The random seeds, each a video of every prompt, such as 0-3,7 (default: 0)."
)
flags.DEFINE_alias("seed", "seeds")
OUT = commands.define_path(
    "out", "The folder to write (default: outputs, or outputs-2, … beside other prompts)."
)
OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace results in --out that other settings made."
)
STAGES = flags.DEFINE_list(
    "stages", None, "The stages to run (default: all that the checkpoint has)."
)
ADAPTER = flags.DEFINE_multi_string(
    "adapter", [], "What train.py made of a clip, FILE or FILE=WEIGHT; may be given several times."
)
INVERT = commands.define_path(
    "invert",
    "Only find the noise that the stage in --stages (keyframes) makes into this clip: "
    "OUT/STAGE.noise.npz.",
)
FROM_NOISE = commands.define_path("from-noise", "Start the file's stage from such noise.")
AOT, JSON = commands.define_aot()
commands.define_hosts()


def main() -> None:
    """Makes one call of the flags."""
    # Here, so that --help and misspelt flags do not wait for JAX.
    from show1_jax.errors import InputError
    from show1_jax.generate import generate, override, parse_seeds

    overrides = {"steps": STEPS.value, "guidance": GUIDANCE.value}
    if AOT.value:
        commands.only_compile()
        from show1_jax.aot import programs  # with all of training

        override(CONFIG.value, overrides)
        programs.predict_sampling(CONFIG.value, STAGES.value or None, AOT.value, JSON.value)
        return
    if JSON.value:
        raise InputError("--json is for --aot")
    checkpoint = CHECKPOINT.value or CONFIG.value.get("checkpoint")
    if ADAPTER.value:
        CONFIG.value.keyframes.adapters = tuple(ADAPTER.value)
    seeds = None if SEEDS.value is None else parse_seeds(SEEDS.value)
    if INVERT.value:
        _invert(INVERT.value, checkpoint, seeds)
        return
    if FROM_NOISE.value:
        CONFIG.value.from_noise = str(FROM_NOISE.value)
    commands.join_hosts(preemptible=False)
    generate(
        CONFIG.value,
        checkpoint=checkpoint,
        prompts=PROMPT.value,
        prompts_file=PROMPTS.value,
        seeds=seeds,
        out=OUT.value,
        stages=STAGES.value or None,
        overrides=overrides,
        overwrite=OVERWRITE.value,
    )


def _invert(clip: Path, checkpoint: str | None, seeds: list[int] | None) -> None:
    from show1_jax.errors import InputError
    from show1_jax.generate import free_folder
    from show1_jax.invert import invert_clip

    stages, seeds, prompts = STAGES.value or ["keyframes"], seeds or [0], PROMPT.value or [""]
    others = (PROMPTS.value, GUIDANCE.value, FROM_NOISE.value, flags.FLAGS.coordinator)
    if any(others) or max(len(given) for given in (stages, seeds, prompts)) > 1:
        raise InputError(
            "--invert takes one --prompt, --seed and stage of --stages, --adapter, --steps and "
            "--out alone"
        )
    if any(text.rpartition("=")[0] not in ("", stages[0]) for text in STEPS.value):
        raise InputError(f"--invert runs {stages[0]} alone: give its --steps")
    unset = f"{stages[0]}.steps" not in config_flags.get_override_values(flags.FLAGS["config"])
    steps = [*(["50"] if unset else []), *STEPS.value]
    out = OUT.value or free_folder()
    invert_clip(CONFIG.value, checkpoint, clip, prompts[0], out, steps, stages[0], seeds[0])


if __name__ == "__main__":
    commands.run(main, Path(__file__).parent / "configs" / "tiny.py")
