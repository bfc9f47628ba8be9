"""`--config FILE[:ARG]` and `--config.KEY=VALUE`."""

import shutil
from pathlib import Path

import pytest

from show1_jax.cli.shapes import main
from show1_jax.config_files import load_config, packaged
from show1_jax.configs import tiny
from show1_jax.errors import InputError, UsageError
from tests import programs

ROOT = Path(__file__).parents[2]


def test_configs_are_found_by_name_and_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(packaged()) == ["customize", "show1", "tiny", "tiny32"]
    by_name, changed = load_config("tiny:image")
    assert changed == {}
    assert by_name == tiny.get_config("image").lock()
    for file in (ROOT / "configs" / "tiny.py", "configs/tiny.py"):  # that is not there
        assert load_config(f"{file}:image")[0] == by_name
    (tmp_path / "configs").mkdir()
    own = (ROOT / "configs" / "tiny.py").read_text().replace('"steps": 10,', '"steps": 11,')
    Path("configs/tiny.py").write_text(own)
    Path("my.py").write_text(own)
    for file in ("configs/tiny.py", "my.py", str(tmp_path / "my.py")):
        assert load_config(file)[0].keyframes.steps == 11
    assert load_config("tiny")[0].keyframes.steps == 10
    shutil.rmtree("configs")


def test_values_are_read_by_their_types():
    config, changed = load_config(
        "tiny",
        [
            "--config.keyframes.steps=3", "--config.keyframes.fps", "2",
            "--config.text.clean_captions", "--noconfig.keyframes.dropout",
            "--config.keyframes.unet.channels=(32,64)", "--config.stage=keyframes",
            "--config.keyframes.adapters=a.safetensors", "--config.keyframes.adapters=b=0.5",
            "--config.train.image.objective.min_snr=5", "--config.keyframes.steps=4",
        ],
    )  # fmt: skip
    assert (config.keyframes.steps, config.keyframes.fps) == (4, 2.0)
    assert (config.text.clean_captions, config.keyframes.dropout) == (True, False)
    assert config.keyframes.unet.channels == (32, 64)
    assert config.keyframes.adapters == ("a.safetensors", "b=0.5")
    assert config.train.image.objective.min_snr == 5.0
    assert "keyframes.steps" in changed
    assert "keyframes.guidance" not in changed
    assert load_config("tiny")[0].keyframes.steps == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("keyframs.steps=3", "the config has no key 'keyframs' there; did you mean 'keyframes'?"),
        ("keyframes.stepz=3", "the config has no key 'stepz' there; did you mean 'steps'?"),
        ("keyframes.steps=few", "--config.keyframes.steps=few: "),
        ("keyframes.steps=2.5", "--config.keyframes.steps=2.5: "),
        ("keyframes.fps=nan", "config.keyframes.fps is nan, but must be finite"),
        ("keyframes={}", "."),
        (
            "keyframes.unet.layers=a",
            "config.keyframes.unet.layers is 'a', but must be a value like 1",
        ),
        ("=3", "."),
    ],
)
def test_wrong_changes_are_wrong_command_lines(change, message, capsys):
    assert main([f"--config.{change}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}" if message != "." else "error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tinny.py", "there is no file 'tinny.py'"),
        ("tinny", "there is no file 'tinny'; give a file, or one of customize, show1, tiny"),
        ("configs/tinny.py", "there is no file 'configs/tinny.py'"),
        ("customize:shew1", "there is no base 'shew1': take tiny or show1"),
        ("/", "the config file / cannot be read: Is a directory"),
        ("", "there is no file ''; give a file"),
        ("az://bucket/a.py", "az://bucket/a.py is not on this machine, and paths with"),
    ],
)
def test_files_that_are_not_there_are_named(file, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"--config={file}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(", "SyntaxError: '(' was never closed"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def get_config():\n    raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("def get_config():\n    return get_config()", "RecursionError: maximum recursion depth"),
        ("def get_config():\n    raise SystemExit(3)", "the config file ends the program"),
        ("def get_config():\n    return None", "config is None, but must be a ConfigDict"),
        ("config = 5", "the config file has no function get_config"),
        ("def get_config():\n    raise ValueError", "the config file raises ValueError"),
    ],
)
def test_files_that_make_no_config_are_refused_in_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text(text + "\n")
    assert main([f"--config={path}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_config_may_import_those_of_the_package(tmp_path):
    (tmp_path / "my.py").write_text(
        "from show1_jax.configs import tiny\n\n\n"
        "def get_config():\n"
        "    config = tiny.get_config()\n"
        "    config.checkpoint = 'nowhere'\n"
        "    return config\n"
    )
    done = programs.run("show1_jax.shapes", "--config=my.py", "--count=1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: nowhere ")


def test_changes_are_read_wherever_they_stand(tmp_path):
    with pytest.raises(UsageError, match="'steps' there"):
        load_config("tiny", ["--config.steps=3"])
    with pytest.raises(InputError):
        load_config(str(tmp_path / "none.py"))
