"""What training leaves is a checkpoint like a released one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from show1_jax.checkpoints.export import export_network
from show1_jax.checkpoints.released import find_stages
from show1_jax.checkpoints.store import load_params
from show1_jax.cli import convert
from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.models.unet import UNetConfig
from show1_jax.models.vae import VAEConfig
from show1_jax.stages import Autoencoder, Image
from show1_jax.stages.stage import solver_config
from show1_jax.stages.translation import to_latents
from show1_jax.training import loop
from show1_jax.training.tasks import pixels
from tests.stages.test_stages import random_params
from tests.training.small import assert_same, by_path, small_config

PROMPTS = ["a small red circle moving left", "a large blue square"]


@pytest.fixture(scope="module")
def config(data_dir, checkpoint):
    config = small_config("keyframes", data_dir)
    config.checkpoint = str(checkpoint)
    config.batch_size = len(PROMPTS)
    return config


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    loop.train(config, workdir)
    return workdir


def test_an_image_network_is_not_sampled_from(tmp_path, data_dir):
    config = small_config("image", data_dir)
    module = Image.from_config(config).module(jnp.float32)
    export_network(tmp_path, "keyframes", module, random_params(module))
    with pytest.raises(InputError, match="show-1-base/unet is an image network, which makes no cl"):
        Engine(config, tmp_path)


def test_what_is_exported_is_the_average_and_says_what_it_is(trained, config, checkpoint):
    stages = find_stages(trained / "checkpoint")
    assert stages.keys() == {"keyframes"}
    folder = stages["keyframes"]
    module = folder.module("unet", jnp.float32)
    assert module.config == UNetConfig(**config.keyframes.unet)
    assert folder.solver() == solver_config(config.keyframes.solver)
    state = load_params(trained / "keyframes" / "checkpoints" / "2" / "state")
    params = folder.params("unet", module, jnp.float32)
    assert_same(params, state["optimizer"][2]["average"])
    assert any(
        not np.array_equal(*pair)
        for pair in zip(jax.tree.leaves(params), jax.tree.leaves(state["trained"]), strict=True)
    )
    index = json.loads((folder.folder / "model_index.json").read_text())
    assert index["_class_name"] == "TextToVideoIFPipeline"
    assert index["unet"] == ["showone.models.unet_3d_condition", "UNet3DConditionModel"]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    assert index["text_encoder"] == ["transformers", "T5EncoderModel"]
    assert index["tokenizer"] == ["transformers", "T5Tokenizer"]
    copied = load_params(folder.folder / "text_encoder" / "params")
    assert_same(copied, load_params(checkpoint / "show-1-base" / "text_encoder" / "params"))
    left = {path.name for path in trained.iterdir()}
    assert left == {"keyframes", "checkpoint"}


@pytest.mark.slow
def test_keyframes_start_from_an_image_network(checkpoint, data_dir, tmp_path, capsys):
    config = small_config("image", data_dir)
    config.checkpoint = str(checkpoint)
    loop.train(config, tmp_path)
    image = find_stages(tmp_path / "image" / "checkpoint")["keyframes"]
    given = by_path(load_params(image.folder / "unet" / "params"))
    assert not image.module("unet", jnp.float32).config.temporal
    assert not (tmp_path / "checkpoint").exists()

    config.stage = "keyframes"
    config.train.keyframes.update(init="image", steps=1, learning_rate=0.0, ema_decay=0.0)
    loop.train(config, tmp_path)
    assert f"keyframes starts from {image.folder / 'unet'}" in capsys.readouterr().out
    became = by_path(load_params(tmp_path / "checkpoint" / "show-1-base" / "unet" / "params"))
    assert_same({path: became[path] for path in given}, given)
    assert all("temporal" in path for path in became.keys() - given.keys())


def test_an_image_network_is_to_be_trained_first(config, tmp_path):
    config = ConfigDict(config.to_dict())
    config.train.keyframes.init = "image"
    with pytest.raises(InputError, match=r"init=image needs .*unet: train image first, or give"):
        loop.train(config, tmp_path)


def test_it_converts_to_pytorch_and_back(trained, tmp_path):
    source, torch, back = trained / "checkpoint", tmp_path / "torch", tmp_path / "back"
    assert convert.main([str(source), str(torch), "--to-torch", "--verify"]) == 0
    assert (torch / "show-1-base" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert convert.main([str(torch), str(back), "--verify"]) == 0
    for name in ("unet", "text_encoder"):
        params = f"show-1-base/{name}/params"
        assert_same(load_params(back / params), load_params(source / params))


class Kept:
    """Results in memory."""

    def done(self, item, stage, settings):
        return False

    def __init__(self):
        self.made = {}

    def has(self, item, stage):
        return (item, stage) in self.made

    def save(self, item, stage, result, settings):
        self.made[item, stage] = result


def test_the_cascade_samples_from_it(trained, config, caplog):
    results = Kept()
    engine = Engine(config, trained / "checkpoint", ["keyframes"])
    engine.run(PROMPTS, [1, 1], results)
    assert "differ" not in caplog.text
    clips = [results.made[item, "keyframes"] for item in range(2)]
    section = config.keyframes
    assert clips[0].shape == (section.frames, section.height, section.width, 3)
    assert np.isfinite(clips).all()
    # The same seed with other words.
    assert np.abs(clips[0] - clips[1]).max() > 1e-6


def test_latents_have_unit_variance(data_dir, tmp_path):
    run = loop.Run(small_config("vae", data_dir, validation_batches=2), Autoencoder, tmp_path)
    run.networks.export(run.task.module, random_params(run.task.module), run._scaled)
    folder = find_stages(tmp_path / "checkpoint")["translation"]
    vae = folder.module("vae", jnp.float32)
    assert vae.config.scaling_factor != VAEConfig().scaling_factor
    params = folder.params("vae", vae, jnp.float32)
    clips = np.stack([pixels(batch) for batch in run.validation])
    mean, logvar = jax.jit(lambda x: vae.apply({"params": params}, x, method="encode"))(clips)
    noise = jax.random.normal(jax.random.key(0), mean.shape)
    latents = to_latents(vae, mean, logvar, noise)
    np.testing.assert_allclose(jnp.var(latents), 1, rtol=0.1)
