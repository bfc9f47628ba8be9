"""Faults of wiring, each put into a copy of the package: the tests named beside it must fail.

    python -m tests.mutants [-k NAME] [--list]

First the same tests run without a fault, and must pass. Ends with status 1, and the list, if a
fault survives or its patch no longer applies.
"""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import KEPT_PROGRAMS

ROOT = Path(__file__).parent.parent
COPIED = ("show1_jax", "configs", "tests", "pyproject.toml", "sample.py", "train.py")
LONGEST = 1200.0  # seconds for the tests of one fault

ENGINE = "show1_jax/engine.py"
LOADING = "show1_jax/loading.py"
PROMPTS = "show1_jax/text/prompts.py"
STAGE = "show1_jax/stages/stage.py"
GAPS = "show1_jax/stages/interpolation.py"
SAMPLING = "show1_jax/stages/sampling.py"
UPSCALING = "show1_jax/stages/upscaling.py"
FIRST_FRAME = "show1_jax/stages/first_frame.py"
SUPER = "show1_jax/stages/super_resolution.py"
TRANSLATION = "show1_jax/stages/translation.py"

# The first have mirrors in place of networks, which show all that reaches one; the second make
# real videos, which takes four times as long.
WIRING, SHOWN = "tests/test_wiring.py::test_", "tests/test_shown.py::test_"
KEYFRAMES = WIRING + "keyframes"
TRANSLATED = WIRING + "translation_starts_from_the_noised_clip_at_its_strength"
FIRST = WIRING + "first_frame_starts_from_the_first_one"
WINDOWS = WIRING + "super_resolution_goes_on_from_the_first_frame_window_by_window"
STEPS = WIRING + "the_number_of_steps_and_the_strength_decide_the_timesteps"
ADAPTER = WIRING + "an_adapter_changes_the_parameters_by_its_weight"
SCHEDULE = WIRING + "conditions_are_noised_by_the_schedule_of_the_checkpoint"
IN_ORDER = SHOWN + "interpolation_passes_through_the_keyframes_in_their_order"
SHRUNK = SHOWN + "super_resolution_shrunk_is_what_it_was_made_from"
DEPARTURE = SHOWN + "translation_departs_from_the_clip_no_further_than_its_strength_lets_it"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
      name: the name of the fault.
      file: the file that it is put into.
      old: the text that is replaced.
      new: the text that replaces it.
      test: the test of the default suite that must fail.
      times: how often `old` occurs.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    times: int = 1

    def patched(self, root: Path) -> str:
        """The file's text with the fault. Raises ValueError if the patch does not apply."""
        text = (root / self.file).read_text()
        found = text.count(self.old)
        if found != self.times:
            raise ValueError(f"{self.name}: {self.old!r} is {found} times in {self.file}")
        return text.replace(self.old, self.new)


MUTANTS = [
    Mutant("guidance_fixed", ENGINE, "jnp.float32(own.guidance)", "jnp.float32(1.25)",
           KEYFRAMES),
    Mutant("never_guided", LOADING, "stage.guidance > 1", "False", KEYFRAMES),
    Mutant("texts_swapped_between_items", PROMPTS, "for prompt in prompts], axis=1",
           "for prompt in prompts[::-1]], axis=1", KEYFRAMES),
    Mutant("negative_and_positive_swapped", PROMPTS, "[negative, own[prompt]]",
           "[own[prompt], negative]", KEYFRAMES),
    Mutant("negative_prompt_ignored", STAGE, '("dropout", "negative_prompt", "head_reading")',
           '("dropout", "head_reading")', TRANSLATED),
    Mutant("t5_reads_nothing", ENGINE, "return encoder(texts, self",
           'return encoder([""] * len(texts) if name == "t5" else texts, self', KEYFRAMES),
    Mutant("t5_reads_the_first_words", ENGINE, "token_count(name, text.t5_tokens)",
           '4 if name == "t5" else 77', KEYFRAMES),
    Mutant("clip_reads_nothing", ENGINE, "return encoder(texts, self",
           'return encoder([""] * len(texts) if name == "clip" else texts, self', TRANSLATED),
    Mutant("seeds_swapped_between_items", ENGINE, "[run.seeds[item] for item in items]",
           "[run.seeds[item] for item in items[::-1]]", KEYFRAMES),
    Mutant("seeds_ignored", SAMPLING, "jax.random.key(seed)", "jax.random.key(0)", KEYFRAMES),
    Mutant("stages_share_their_noise", SAMPLING, "number = zlib.crc32(stage.encode())",
           "number = 0", FIRST),
    Mutant("results_swapped_between_items", ENGINE, "in zip(made, batch, strict=True)",
           "in zip(made[::-1], batch, strict=True)", KEYFRAMES),
    Mutant("keyframes_reversed", GAPS, "keyframes = inputs[Keyframes.name]\n        batch",
           "keyframes = inputs[Keyframes.name][:, ::-1]\n        batch", IN_ORDER),
    Mutant("keyframes_blended_the_wrong_way", "show1_jax/stages/interpolation.py",
           "before * (1 - weight) + after * weight", "before * weight + after * (1 - weight)",
           WIRING + "interpolation_starts_from_the_keyframes_in_their_order"),
    Mutant("first_frame_from_the_last", FIRST_FRAME, "inputs[Interpolation.name][:, :1]",
           "inputs[Interpolation.name][:, -1:]", SHOWN + "the_first_frame_is_the_first_frame"),
    Mutant("first_frame_ignored", ENGINE,
           "if results.has(item, used):\n                own[used]",
           "if False:\n                own[used]", WINDOWS),
    Mutant("noise_level_zero", SUPER, "jnp.int32(self.noise_level)", "jnp.int32(0)",
           SHOWN + "of_a_noisier_condition_the_upscaler_keeps_less"),
    Mutant("noise_level_not_told", SUPER, "Conditions(call.text, condition, level)",
           "Conditions(call.text, condition, 0 * level)", WINDOWS),
    Mutant("noise_by_the_schedule_of_the_solver", LOADING, "noise_schedule=found)",
           "noise_schedule=stage.solver.schedule)", SCHEDULE),
    Mutant("super_resolution_from_the_keyframes", SUPER,
           "video, first_frame = inputs[Interpolation.name], inputs[FirstFrame.name]",
           "first_frame = inputs[FirstFrame.name]\n"
           "        video = jnp.repeat(inputs[Interpolation.name][:, ::4], 4, axis=1)[:, :29]",
           WINDOWS),
    Mutant("window_sees_one_frame_early", SUPER, "condition(video[:, at : at + window]",
           "condition(video[:, max(0, at - 1) : max(0, at - 1) + window]", SHRUNK),
    Mutant("window_starts_one_frame_early", UPSCALING, "min(start, frames - window)",
           "min(start - 1, frames - window)", WINDOWS),
    Mutant("windows_go_on_from_the_first_frame", SUPER, "noise, level, result[:, at])",
           "noise, level, result[:, 0])", WINDOWS),
    Mutant("translation_from_interpolation", TRANSLATION, "needs = (SuperResolution.name,)",
           'needs = ("interpolation",)', TRANSLATED),
    Mutant("strength_ignored", TRANSLATION, "first = int(solver.first_step(self.strength))",
           "first = 0", DEPARTURE),
    Mutant("first_step_ignored", SAMPLING, "    begin = first_step\n", "    begin = 0\n",
           TRANSLATED),
    Mutant("clip_noised_by_another_schedule", TRANSLATION,
           "jnp.asarray(solver.config.schedule.alphas_cumprod)", "jnp.linspace(1, 0, 1000)",
           TRANSLATED),
    Mutant("latents_not_scaled", TRANSLATION, "* noise) * vae.config.scaling_factor", "* noise)",
           TRANSLATED),
    Mutant("latents_scaled_when_decoded", TRANSLATION, "latents / vae.config.scaling_factor",
           "latents", TRANSLATED),
    Mutant("posterior_too_wide", TRANSLATION, "(mean + jnp.exp(0.5 * logvar)",
           "(mean + jnp.exp(logvar)", TRANSLATED),
    Mutant("mean_and_variance_swapped", "show1_jax/models/vae.py", "mean, logvar = jnp.split(",
           "logvar, mean = jnp.split(",
           "tests/models/test_vae.py::test_encodes_and_decodes_as_recorded"),
    Mutant("pixels_not_clipped", "show1_jax/media.py",
           "np.clip(np.asarray(video, np.float32), -1, 1)", "np.asarray(video, np.float32)",
           TRANSLATED),
    Mutant("clean_sample_not_clipped", "show1_jax/diffusion/threshold.py",
           "return jnp.clip(clean, -1, 1)", "return clean", KEYFRAMES),
    Mutant("steps_ignored", LOADING, "make_solver(config, stage.steps)", "make_solver(config, 10)",
           STEPS),
    Mutant("steps_of_one_stage_for_all", "show1_jax/generate.py", "[stage] if stage else names",
           "names", STEPS),
    Mutant("adapters_ignored", ENGINE, "if not self.loaded.adapters[stage]:", "if True:", ADAPTER),
    Mutant("weight_of_adapters_ignored", "show1_jax/adapters/files.py",
           "np.float32(weight) * _whole(change)", "_whole(change)", ADAPTER),
    Mutant("rate_of_mp4s_fixed", "show1_jax/media.py", "Fraction(fps)", "Fraction(7.5)",
           "tests/test_generate.py::test_every_stage_of_every_prompt_is_there"),
]  # fmt: skip


def copy_to(folder: Path) -> None:
    """Copies what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)


def run_tests(folder: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Runs tests of a copy up to the first that fails: the status, and the line that says which."""
    compiled = folder / "compiled"
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "COLUMNS": "200",  # of the lines that say what failed
        "PYTHONDONTWRITEBYTECODE": "1",  # a fault may be as long and as old as what it replaces
        KEPT_PROGRAMS: os.environ.get(KEPT_PROGRAMS, str(compiled)),
    }
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST
    )
    lines = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)
    return done.returncode, lines[0] if lines else (done.stdout + done.stderr)[-500:]


def check_unpatched(folder: Path, mutants: Iterable[Mutant]) -> None:
    """Raises RuntimeError unless the tests pass as long as there is no fault."""
    status, line = run_tests(folder, sorted({mutant.test for mutant in mutants}))
    if status:
        raise RuntimeError(f"without a fault: {line}")


def catch(folder: Path, mutant: Mutant) -> str:
    """Puts one fault into a copy, for a while: the line of the test that fails.

    Raises:
      ValueError: if the patch does not apply.
      RuntimeError: if the fault survives.
    """
    path = folder / mutant.file
    before, patched = path.read_text(), mutant.patched(folder)
    try:
        path.write_text(patched)
        status, line = run_tests(folder, [mutant.test])
    finally:
        path.write_text(before)
    if status != 1:  # of pytest: tests ran, and one failed
        raise RuntimeError(f"{mutant.name} survives {mutant.test}: {line}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", metavar="NAME", help="faults whose name holds this")
    parser.add_argument("--list", action="store_true", help="say which there are")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.k in mutant.name]
    if arguments.list:
        print("\n".join(f"{mutant.name}: {mutant.test}" for mutant in chosen))
        return
    wrong = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = Path(temporary)
        copy_to(folder)
        check_unpatched(folder, chosen)
        for mutant in chosen:
            begin = time.monotonic()
            try:
                told = catch(folder, mutant)
            except (ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
                told = f"NOT CAUGHT: {error}"
                wrong.append(mutant.name)
            print(f"{mutant.name}: {time.monotonic() - begin:.0f} s: {told}", flush=True)
    if wrong:
        sys.exit(f"{len(wrong)} of {len(chosen)} faults are not caught: {', '.join(wrong)}")
    print(f"all {len(chosen)} faults are caught")


if __name__ == "__main__":
    main()
