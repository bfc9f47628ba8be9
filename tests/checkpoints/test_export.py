"""A checkpoint that training writes into is whole whenever writing is cut off."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from show1_jax.checkpoints import export
from show1_jax.checkpoints.export import export_copy, export_network, export_scheduler
from show1_jax.checkpoints.released import find_stages
from show1_jax.checkpoints.store import load_params
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig
from show1_jax.errors import InputError
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE, VAEConfig
from tests.conftest import largest_file
from tests.stages.test_stages import BASE, random_params

pytestmark = pytest.mark.usefixtures("_overtaken_by_failure")

MODULE = VAE(VAEConfig(channels=(4,), layers_per_block=1, norm_groups=2, scaling_factor=0.5))


@pytest.fixture(scope="module")
def params():
    return random_params(MODULE)


def parts(checkpoint):
    """What the index of the latent stage lists, and what is there."""
    index = json.loads((checkpoint / "show-1-sr2" / "model_index.json").read_text())
    listed = {name for name, value in index.items() if isinstance(value, list)}
    there = {path.name for path in (checkpoint / "show-1-sr2").iterdir() if path.is_dir()}
    return listed, there


def test_a_network_and_its_place(params, tmp_path):
    checkpoint = tmp_path / "deep" / "checkpoint"
    export_network(checkpoint, "translation", MODULE, params)
    solver = SolverConfig("dpm_solver", NoiseSchedule("cosine"), prediction="v")
    export_scheduler(checkpoint, "translation", "scheduler", solver)
    assert parts(checkpoint) == ({"vae", "scheduler"}, {"vae", "scheduler"})
    folder = find_stages(checkpoint)["translation"]
    assert folder.module("vae", jnp.float32) == MODULE
    assert folder.solver() == solver
    # In place of an older one.
    newer = jax.tree.map(lambda leaf: leaf + 1, params)
    export_network(checkpoint, "translation", MODULE, newer)
    held = load_params(folder.folder / "vae" / "params")
    assert (held["decoder"]["conv_in"]["bias"] == newer["decoder"]["conv_in"]["bias"]).all()
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]
    assert [path.name for path in checkpoint.iterdir()] == ["show-1-sr2"]


class CutOff(BaseException):
    """As if the process was killed."""


@pytest.mark.parametrize("again", [False, True])
def test_cut_off_anywhere_it_can_be_written_again(params, tmp_path, monkeypatch, again):
    calls = 0

    def counted(rename):
        def function(*arguments):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise CutOff
            return rename(*arguments)

        return function

    for stop in range(1, 10):
        checkpoint = tmp_path / str(stop)
        if again:
            export_network(checkpoint, "translation", MODULE, params)
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", counted(os.rename))
            patch.setattr(Path, "rename", counted(Path.rename))
            # Only its own renames, not Orbax's.
            patch.setattr(export, "save_params", lambda folder, params: folder.mkdir())
            try:
                export_network(checkpoint, "translation", MODULE, params)
            except CutOff:
                assert any(checkpoint.glob("*/model_index.json")) == any(checkpoint.iterdir())
                if any(checkpoint.iterdir()):
                    assert find_stages(checkpoint).keys() == {"translation"}
            else:
                assert stop > 3
                break
        export_network(checkpoint, "translation", MODULE, params)
        assert parts(checkpoint) == ({"vae"}, {"vae"})
    else:
        raise AssertionError("it was cut off every time")


def test_a_full_disk_keeps_the_older_one(params, tmp_path):
    export_network(tmp_path / "checkpoint", "translation", MODULE, params)
    with (
        largest_file(2000),
        pytest.raises(InputError, match=r"params cannot be written: File too large$"),
    ):
        export_network(tmp_path / "checkpoint", "translation", MODULE, params)
    assert parts(tmp_path / "checkpoint") == ({"vae"}, {"vae"})
    load_params(tmp_path / "checkpoint" / "show-1-sr2" / "vae" / "params")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_copies_are_made_once(tmp_path):
    source = tmp_path / "text_encoder"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "clip_text_model"}')
    export_copy(tmp_path / "checkpoint", "translation", source)
    assert parts(tmp_path / "checkpoint") == ({"text_encoder"}, {"text_encoder"})
    (source / "config.json").write_text("{}")
    export_copy(tmp_path / "checkpoint", "translation", source)
    copied = tmp_path / "checkpoint" / "show-1-sr2" / "text_encoder" / "config.json"
    assert "clip" in copied.read_text()
    for name in ("some", "others"):
        (source / name).write_bytes(bytes(1000))
    message = r"text_encoder cannot be written: File too large$"
    with largest_file(500), pytest.raises(InputError, match=message):
        export_copy(tmp_path / "other", "translation", source)


def test_what_pytorch_has_no_class_for_is_refused(tmp_path):
    unet = UNet(dataclasses.replace(BASE, layers=(0,)))
    with pytest.raises(InputError, match="layers_per_block"):
        export_network(tmp_path, "keyframes", unet, {})
    assert not list(tmp_path.iterdir())
