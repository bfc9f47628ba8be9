"""Benchmarks run what they say; their figures are nobody's business here."""

import re
import subprocess
from pathlib import Path

import jax
import pytest

from show1_jax.benchmark import decoding, ours, side_by_side
from show1_jax.cli.benchmark import main
from show1_jax.configs import show1, tiny
from show1_jax.errors import InputError
from show1_jax.parallel import sharding
from tests import programs
from tests.training.small import small_config

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "name",
    ["keyframes", "translation.decode", pytest.param("train.keyframes", marks=pytest.mark.slow)],
)
def test_programs_run(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    ours.measure(small_config("keyframes"), name, calls=2, batch=3)
    label = f"{name} of 3 clips a device" if name == "train.keyframes" else name
    found = re.match(rf"{label}: ([\d,]+) parameters, (\d\.\d+) s .*, of 2\), compiled in", (
        capsys.readouterr().out
    ))  # fmt: skip
    assert int(found[1].replace(",", "")) > 1000
    assert float(found[2]) > 0


def test_decoding_is_compared(capsys, monkeypatch):
    monkeypatch.setattr(decoding, "SIZES", ((48, 64),))
    decoding.measure(tiny.get_config(), calls=1)
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"48p to 8 x 10 x 16 at .* fps \(keyframes\): clips .*: PyAV \d+", lines[2])
    assert all(re.search(r", ours [\d.]+.*; ours \d+% of PyAV$", line) for line in lines)


def test_parameters_are_made_in_the_order_that_gpus_want(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sharding, "current_platform", lambda: ("gpu", 9.0))
    ours.measure(small_config("keyframes"), "keyframes", calls=1)
    assert "keyframes: " in capsys.readouterr().out


def test_one_that_fails_is_named_and_the_others_are_measured(monkeypatch, capsys):
    started = []

    def run(command, **settings):
        started.append(command)
        return subprocess.CompletedProcess(command, -9 if command[-1] == "vae" else 0)

    monkeypatch.setattr(subprocess, "run", run)
    change = "--config.batch_size=2"
    assert main(["--torch", "vae", "t5", "--frames", "3", "--config", "tiny", change]) == 1
    assert "error: vae (status -9) could not be measured" in capsys.readouterr().err
    assert [command[-1] for command in started] == ["vae", "t5"]
    assert all(
        {"--torch", "--frames=3", "--config=tiny", change} <= set(command) for command in started
    )


@pytest.mark.slow  # PyTorch's libraries take some seconds to load
@pytest.mark.parametrize("name", side_by_side.NETWORKS)
def test_pytorch_makes_the_same(name, capsys):
    config = tiny.get_config()
    config.translation.unet.norm_groups = 32  # diffusers knows no other in all of its layers
    config.translation.update(height=32, width=48)
    config.super_resolution.update(height=16, width=24)
    config.text.t5 = show1.get_config().text.t5
    config.text.t5.update(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=3)
    side_by_side.compare(config, name, calls=1, frames=3)
    text = capsys.readouterr().out
    assert float(re.search(r"differ by (\S+) of", text)[1]) < 1e-5, text


def test_pytorch_on_cpus_is_not_compared_with_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="set JAX_PLATFORMS=cpu"):
        side_by_side.compare(tiny.get_config(), "vae", calls=1, frames=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sound"], "there is no 'sound' to measure; take t5, clip, keyframes"),
        pytest.param(
            ["keyframes", "--torch"],
            "there is no 'keyframes' to measure; take translation",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_command_line_ends_in_a_clear_line(arguments, message):
    done = programs.run("show1_jax.benchmark", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
