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
STAGES = flags.DEFINE_list(
    "stages", None, "The stages to run (default: all that the checkpoint has)."
)
ADAPTER = flags.DEFINE_multi_string(
    "adapter", [], "What train.py made of a clip, FILE or FILE=WEIGHT; may be given several times."
)
INVERT = commands.define_path(
    "invert", "Only find the noise that makes this clip: OUT/keyframes.noise.npz."
)
FROM_NOISE = flags.DEFINE_string("from-noise", None, "Start the keyframes from such a file.")
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
        from show1_jax.parallel import programs  # with all of training

        override(CONFIG.value, overrides)
        programs.predict_sampling(CONFIG.value, STAGES.value, AOT.value, JSON.value)
        return
    checkpoint = CHECKPOINT.value or CONFIG.value.get("checkpoint")
    if ADAPTER.value:
        CONFIG.value.keyframes.adapters = tuple(ADAPTER.value)
    if FROM_NOISE.value:
        CONFIG.value.keyframes.noise = FROM_NOISE.value
    seeds = None if SEEDS.value is None else parse_seeds(SEEDS.value)
    if INVERT.value:
        _invert(INVERT.value, checkpoint)
        return
    if (ADAPTER.value or FROM_NOISE.value) and STAGES.value and "keyframes" not in STAGES.value:
        raise InputError("--adapter and --from-noise are for the keyframes: name them in --stages")
    if FROM_NOISE.value and (len(seeds or ()) > 1 or any(_for_keyframes(x) for x in STEPS.value)):
        raise InputError("--from-noise decides the keyframes' steps, and is the same for all seeds")
    commands.join_hosts()
    generate(
        CONFIG.value,
        checkpoint=checkpoint,
        prompts=PROMPT.value,
        prompts_file=PROMPTS.value,
        seeds=seeds,
        out=OUT.value,
        stages=STAGES.value,
        overrides=overrides,
    )


def _for_keyframes(steps: str) -> bool:
    return steps.rpartition("=")[0] in ("", "keyframes")


def _invert(clip: Path, checkpoint: str | None) -> None:
    from show1_jax.errors import InputError
    from show1_jax.generate import DEFAULT_OUT
    from show1_jax.invert import invert_clip

    others = (PROMPTS, SEEDS, STAGES, GUIDANCE, FROM_NOISE)
    if any(flag.value for flag in others) or len(PROMPT.value) > 1 or flags.FLAGS.coordinator:
        raise InputError("--invert takes one --prompt, --adapter, --steps and --out alone")
    prompt = PROMPT.value[0] if PROMPT.value else ""
    if "keyframes.steps" not in config_flags.get_override_values(flags.FLAGS["config"]):
        CONFIG.value.keyframes.steps = 50
    out, steps = OUT.value or DEFAULT_OUT, {"steps": STEPS.value}
    invert_clip(CONFIG.value, checkpoint, clip, prompt, out, steps)


if __name__ == "__main__":
    commands.run(main, Path(__file__).parent / "configs" / "tiny.py")
