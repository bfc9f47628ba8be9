"""Programs say in one line what is wrong with their flags, wherever they are started."""

import pwd
from pathlib import Path

import jax
import pytest

from show1_jax import commands
from tests import programs

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=tinny.py"], "there is no file 'tinny.py'"),
        (
            [f"--config={ROOT}/configs/customize.py:shew1"],
            "there is no base 'shew1': take tiny or show1",
        ),
        (
            ["--config.keyframs.steps=3"],
            "the config has no key 'keyframs' there; did you mean 'keyframes'?",
        ),
        (
            ["--config.keyframes.stepz=3"],
            "the config has no key 'stepz' there; did you mean 'steps'?",
        ),
        (["--prompts=0"], "flag --prompts=0: 0 is not a positive integer"),
    ],
)
def test_wrong_flags_are_named_in_one_line(flags, message, tmp_path):
    ended = programs.run("show1_jax.shapes", *flags, cwd=tmp_path)
    assert (ended.stderr, ended.returncode) == (f"error: {message}\n", 1)


@pytest.mark.parametrize("program", ["show1_jax.convert", "show1_jax.merge", "show1_jax.benchmark"])
def test_paths_with_a_scheme_are_refused(program, tmp_path):
    arguments = {
        "show1_jax.convert": [tmp_path, "gs://bucket/x"],
        "show1_jax.merge": [tmp_path, "gs://bucket/x", "a.safetensors"],
        "show1_jax.benchmark": ["keyframes", "--profile=gs://bucket/x"],
    }[program]
    ended = programs.run(program, *arguments, cwd=tmp_path)
    assert ended.stderr.startswith("error: gs://bucket/x is no folder or file of this machine")
    assert (ended.stderr.count("\n"), ended.returncode) == (1, 1)
    assert not list(tmp_path.iterdir())


def test_help_in_short_ends_well(tmp_path):
    ended = programs.run("show1_jax.shapes", "-h", cwd=tmp_path)
    assert "--prompts: How many prompts." in ended.stdout
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.fixture
def homeless(monkeypatch):
    """As of a user ID that the system does not list, in a container for one."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_without_a_home_folder_programs_are_compiled_all_the_same(
    homeless, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    commands.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "show1_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    commands.use_compilation_cache()
    assert "set XDG_CACHE_HOME" in caplog.text


def test_warnings_are_plain_lines(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "from pathlib import Path\n"
        "from absl import logging\n"
        "from show1_jax import commands\n"
        "commands.define_config('')\n"
        "commands.run(lambda: logging.warning('A %s is odd.', 'word'), Path('configs/tiny.py'))\n"
    )
    ended = programs.run(script, cwd=ROOT)
    assert ended.stderr == "warning: A word is odd.\n"
