"""What all programs have in common: their flags, their help, how they end."""

import argparse
import errno
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from absl import logging

from show1_jax import _version
from show1_jax.cli import flags, motion
from show1_jax.cli.program import Parser, run
from show1_jax.errors import InputError, Preempted
from tests import programs

ROOT = Path(__file__).parents[2]
MODULES = {
    "convert": "show1_jax.convert",
    "merge": "show1_jax.merge",
    "benchmark": "show1_jax.benchmark",
    "shapes": "show1_jax.shapes",
    "motion": "show1_jax.shapes.motion",
    "stylization": "show1_jax.shapes.stylization",
    "sweep": "show1_jax.shapes.sweep",
}
NAMES = ["sample", "train", *MODULES]
SLOW = {"jax", "numpy", "tensorflow", "transformers", "ml_collections", "absl"}


def command(name):
    """The function behind a program."""
    return importlib.import_module(f"show1_jax.cli.{name}").main


@pytest.mark.parametrize("name", NAMES)
def test_help_ends_well_and_shows_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for flag in ("-h", "--help"):
        assert command(name)([flag]) == 0
    said = capsys.readouterr()
    program = f"python -m {MODULES[name]}" if name in MODULES else f"show1-{name}"
    assert said.err == ""
    assert said.out.startswith(f"usage: {program} ")
    assert f"examples:\n  {program} " in said.out
    assert "__main__" not in said.out
    if name not in ("convert", "merge"):
        assert "--config FILE[:ARG]" in said.out
        assert "--config.KEY=VALUE" in said.out


def test_programs_are_called_as_they_were_started(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/some/where/sample.py"])
    assert command("sample")(["--version"]) == 0
    monkeypatch.setattr(sys, "argv", ["/usr/bin/show1-convert"])
    assert command("convert")(["--version"]) == 0
    version = _version.__version__
    assert capsys.readouterr().out == f"sample.py {version}\nshow1-convert {version}\n"


@pytest.mark.parametrize("name", NAMES)
def test_wrong_flags_are_told_before_anything_is_imported(name, tmp_path):
    program = ["-m", MODULES[name]] if name in MODULES else [str(ROOT / f"{name}.py")]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *program, "--nothing=3"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    *imports, line = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith("error: ")
    assert "--nothing" in line or "required: " in line
    assert not {text.rpartition("|")[2].strip().partition(".")[0] for text in imports} & SLOW


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--promt=x"], "there is no flag --promt; did you mean --prompt?"),
        (["--prom", "x"], "there is no flag --prom; did you mean --prompt?"),  # not abbreviated
        (["--zzz"], "there is no flag --zzz; see --help"),
        (["x"], "'x' is not a flag; see --help"),
        (["--prompt"], "--prompt: expected one argument; see --help"),
        (["--steps=keyframes=few"], "--steps: 'few' is not a number; see --help"),
        (["--guidance=1,b"], "--guidance: 'b' is not a number; see --help"),
        (["--processes=two"], "--processes: invalid int value: 'two'; see --help"),
    ],
)
def test_wrong_command_lines_are_told_in_one_line(arguments, message, capsys):
    assert command("sample")(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_wrong_arguments_of_the_others(capsys, tmp_path):
    assert command("merge")(["a"]) == 2
    assert "the following arguments are required: MERGED, ADAPTER" in capsys.readouterr().err
    assert command("convert")(["a", "b", "c"]) == 2
    assert "'c' is one argument too many" in capsys.readouterr().err
    assert command("convert")(["a", "b", "--config.batch_size=3"]) == 2
    assert "there is no flag --config.batch_size" in capsys.readouterr().err
    for count, message in (("0", "0 is not within 1 or more"), ("x", "'x' is not a whole number")):
        assert command("shapes")([f"--count={count}"]) == 2
        assert f"--count: {message}" in capsys.readouterr().err
    assert command("sweep")(["--seed=4294967296"]) == 2
    assert "is not within 0 to 4294967295" in capsys.readouterr().err
    assert command("sweep")(["--steps=few"]) == 2
    assert "--steps: 'few' is not a list of whole numbers" in capsys.readouterr().err
    assert command("motion")([]) == 2
    assert "give --motion, one of circle, " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_motions_that_can_be_named_are_those_that_there_are():
    from show1_jax.shapes.stylization import PAIRS
    from show1_jax.shapes.taught_motions import TAUGHT_MOTIONS

    assert tuple(TAUGHT_MOTIONS) == motion.MOTIONS
    assert PAIRS == 50  # says --help


@pytest.mark.parametrize("name", ["convert", "merge", "benchmark"])
def test_paths_with_a_scheme_are_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = {
        "convert": [str(tmp_path), "az://bucket/x"],
        "merge": [str(tmp_path), "az://bucket/x", "a.safetensors"],
        "benchmark": ["keyframes", "--profile=az://bucket/x"],
    }[name]
    assert command(name)(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: az://bucket/x is not on this machine")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("There is no clip."), 1, "error: There is no clip."),
        (Preempted("told to end"), 143, "told to end"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (None, 0, ""),
    ],
)
def test_programs_end_with_a_line_and_a_status(error, status, line, capsys):
    def call(args):
        if error is not None:
            raise error

    parser = Parser(("program",), "[flags]", "A program.")
    assert run(parser, call, []) == status
    assert capsys.readouterr().err.strip() == line


def test_errors_of_ours_are_not_hidden():
    def call(args):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Parser(("program",), "[flags]", "A program."), call, [])


def test_warnings_are_plain_lines(capsys):
    def call(args):
        logging.warning("A %s is odd.", "word")

    assert run(Parser(("program",), "[flags]", "A program."), call, []) == 0
    assert capsys.readouterr().err == "warning: A word is odd.\n"


def test_a_process_of_its_own_ends_with_the_status(tmp_path):
    done = programs.run("show1_jax.shapes.motion", "--make=x", "--motion=square", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --motion: invalid choice: 'square'")
    done = programs.run("show1_jax.shapes.motion", "--make=clips", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "clips" / "circle.mp4").is_file()


def test_lists():
    assert flags.listed("a, b") == ["a", "b"]
    assert flags.listed("") == []
    assert flags.numbers(float)("1,2.5") == [1.0, 2.5]
    with pytest.raises(argparse.ArgumentTypeError):
        flags.whole(0, 2)("3")


def test_no_thread_keeps_a_program_that_has_failed():
    script = (
        "import sys, threading, time\n"
        "from show1_jax.cli.program import Parser, run\n"
        "from show1_jax.errors import InputError\n"
        "def call(args):\n"
        "    threading.Thread(target=time.sleep, args=[300]).start()\n"
        "    raise InputError('it failed')\n"
        "sys.exit(run(Parser(('program',), '', ''), call))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "error: it failed\n")


def test_errors_of_buckets_are_one_line_and_those_of_disks_are_not_hidden(capsys):
    def failing(path):
        def call(args):
            raise PermissionError(errno.EACCES, "the credentials have no right", path)

        return call

    parser = Parser(("program",), "", "")
    assert run(parser, failing("gs://bucket/x"), []) == 1
    assert capsys.readouterr().err == "error: gs://bucket/x: the credentials have no right\n"
    with pytest.raises(PermissionError):
        run(parser, failing("/x"), [])
