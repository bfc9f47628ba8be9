"""How well a model trained on moving shapes does what its prompts say.

    python -m show1_jax.shapes --checkpoint CHECKPOINT --prompts 200

samples prompts whose combinations of attributes are held out of training, and
prints for each stage how often its clips show the size, color, shape, direction
and background that were asked for, measured from their pixels. Settings are
chosen by the split "validation"; "test" and "looks" measure what was chosen.
"""

from pathlib import Path

from absl import flags

from show1_jax import commands

CONFIG = commands.define_config(
    "How to sample (default: configs/tiny.py); --config.KEY=VALUE changes it."
)
CHECKPOINT, STEPS, GUIDANCE = commands.define_sampling()
PROMPTS = flags.DEFINE_integer("prompts", 200, "How many prompts.", 1)
SEED = flags.DEFINE_integer(
    "seed", 0, "Decides the prompts; their random seeds count up from it.", 0, 2**32 - 1
)
SPLIT = flags.DEFINE_enum(
    "split",
    "validation",
    ["validation", "test", "looks"],
    "Which prompts: of the combinations that settings are chosen by, or kept for the test, or of "
    "looks that training shows in no direction. A model trained on moving_shapes older than "
    "version 6.0.0, as the embedded one is, was shown those of test and looks.",
)
OUT = commands.define_path(
    "out", "A folder to keep results in, to go on from later (default: they are not kept)."
)
SHEET = commands.define_path(
    "sheet", "The contact sheet to write (default: OUT/sheet.png or outputs/evaluation.png)."
)
STAGES = flags.DEFINE_list(
    "stages",
    None,
    "The stages to run (default: all that the checkpoint has); --stages= only judges OUT.",
)
EMPTY = flags.DEFINE_bool(
    "empty", False, "Ask for nothing: accuracies should fall to those of guessing."
)
SWAP = flags.DEFINE_bool(
    "swap", False, "Sample each prompt again with one word swapped: only that should change."
)

ALONE = flags.DEFINE_bool(
    "alone", False, "Give each stage true clips to start from, and compare it with a simple filter."
)


def main() -> None:
    """Makes one call of the flags."""
    # Here, so that --help and misspelt flags do not wait for JAX.
    from show1_jax.errors import InputError
    from show1_jax.shapes.alone import evaluate_alone
    from show1_jax.shapes.evaluation import evaluate

    checkpoint = CHECKPOINT.value or CONFIG.value.get("checkpoint")
    overrides = {"steps": STEPS.value, "guidance": GUIDANCE.value}
    if ALONE.value and (EMPTY.value or SWAP.value or OUT.value or SHEET.value):
        raise InputError("--alone goes without --empty, --swap, --out and --sheet")
    given = (CONFIG.value, checkpoint, PROMPTS.value, SEED.value)
    if ALONE.value:
        evaluate_alone(*given, STAGES.value, overrides, SPLIT.value)
        return
    sheet = OUT.value / "sheet.png" if OUT.value else Path("outputs") / "evaluation.png"
    evaluate(
        *given,
        out=OUT.value,
        sheet=SHEET.value or sheet,
        stages=STAGES.value,
        overrides=overrides,
        empty=EMPTY.value,
        swapped=SWAP.value,
        split=SPLIT.value,
    )


if __name__ == "__main__":
    commands.run(main, Path(__file__).parents[2] / "configs" / "tiny.py")
