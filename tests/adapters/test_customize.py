"""A motion out of one clip: what is trained, what is written, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.adapters.customize import customize, first_trained, make_recipe, recolored
from show1_jax.adapters.files import apply_adapters, load_adapter
from show1_jax.checkpoints.export import export_copy, export_network, export_scheduler
from show1_jax.checkpoints.released import find_stages
from show1_jax.configs import customize as customize_config
from show1_jax.configs import tiny
from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import read_clip
from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.evaluation.metrics import psnr
from show1_jax.invert import invert_clip
from show1_jax.media import write_mp4
from show1_jax.merge import merge
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.shapes import motion
from show1_jax.shapes.arrays import Arrays
from show1_jax.shapes.drawing import render
from show1_jax.shapes.judge import Measurement
from show1_jax.shapes.motion import TAUGHT, Taught, follow
from show1_jax.shapes.scenes import DURATION
from show1_jax.stages.sampling import advance
from show1_jax.stages.stage import solver_config
from show1_jax.training.optimizer import make_optimizer
from show1_jax.training.step import init_state
from show1_jax.training.trainable import split
from tests.stages.test_stages import random_params
from tests.training.small import assert_same, by_path, small_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
    section = small_config("keyframes").keyframes
    unet = UNet(UNetConfig(**section.unet))
    export_network(folder, "keyframes", unet, random_params(unet))
    export_scheduler(folder, "keyframes", "scheduler", solver_config(section.solver))
    for name in ("text_encoder", "tokenizer"):
        export_copy(folder, "keyframes", tiny.CHECKPOINT / "show-1-base" / name)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "circle.mp4"
    write_mp4(path, render(Taught(TAUGHT, "circle"), 9, 32, 48), 7.5)
    return path


@pytest.fixture
def config(checkpoint, clip, tmp_path):
    config = customize_config.get_config()
    config.keyframes = small_config("keyframes").keyframes
    config.checkpoint, config.video, config.prompt = str(checkpoint), str(clip), "in a loop"
    config.out = str(tmp_path / "out" / "circle.safetensors")
    config.customize.update(steps=3, batch_size=2, log_every=1, warmup_steps=0)
    # Which would change parameters that nothing was learnt about.
    config.customize.weight_decay = 0.0
    config.customize.objective.timesteps = (0, 1000)
    return config


def parameters(checkpoint):
    folder = find_stages(checkpoint)["keyframes"]
    return folder.params("unet", folder.module("unet", jnp.float32), jnp.float32)


@pytest.mark.parametrize(
    ("choice", "rank", "motion"),
    [
        pytest.param("temporal_attention", 0, "deviation", marks=pytest.mark.slow),
        pytest.param("temporal_attention_qkv", 0, "vmc", marks=pytest.mark.slow),
        ("temporal", 2, ""),
    ],
)
def test_only_what_was_chosen_changes(config, checkpoint, capsys, choice, rank, motion):
    config.customize.update(trainable=choice, rank=rank)
    config.customize.objective.motion = motion
    path = customize(config)
    assert "3/3  loss" in capsys.readouterr().out
    before = parameters(checkpoint)
    adapter = load_adapter(path, before)
    after = by_path(apply_adapters(before, [(adapter, 1.0)]))
    chosen = by_path(split(before, choice)[0])
    changed = {name for name, leaf in by_path(before).items() if (leaf != after[name]).any()}
    kernels = {name for name in chosen if name.endswith("kernel")}
    assert kernels <= changed <= (kernels if rank else chosen.keys())
    assert adapter.about["prompts"] == "in a loop"
    if rank:
        assert {change[1].shape[0] for change in adapter.changes.values()} == {2}


@pytest.mark.parametrize(
    ("rank", "motion"),
    [
        (0, "deviation"),
        pytest.param(2, "vmc", marks=pytest.mark.slow),
        pytest.param(0, "", marks=pytest.mark.slow),
    ],
)
def test_it_learns_the_clip(config, checkpoint, clip, motion, rank):
    settings = config.customize
    settings.update(steps=40, batch_size=8, log_every=40, learning_rate=1e-2, rank=rank)
    settings.update(trainable="temporal", caption_dropout=0.0, recolor=0.0)
    settings.objective.motion = motion
    before = parameters(checkpoint)
    after = apply_adapters(before, [(load_adapter(customize(config), before), 1.0)])

    folder = find_stages(checkpoint)["keyframes"]
    unet = folder.module("unet", jnp.float32)
    settings.update(rank=0)  # a loss of whole networks, which `after` is
    tuning = make_recipe(settings, unet, folder.solver())
    video = jnp.asarray(read_clip(clip, ClipSpec(3, 4, 6)))[None].repeat(16, axis=0)
    text = jnp.zeros((16, 24, unet.config.text_dim))
    prepared = tuning.prepare(jax.random.key(7), {"empty": text[0]}, {"video": video, "text": text})
    first, last = (float(jax.jit(tuning.loss)(each, prepared).mean()) for each in (before, after))
    assert last < 0.9 * first


def test_a_recolored_clip_has_no_caption(config, checkpoint):
    folder, size = find_stages(checkpoint)["keyframes"], 64
    unet = folder.module("unet", jnp.float32)
    video = jnp.ones((size, 3, 4, 6, 3)) * jnp.array([0.1, 0.5, -0.9])
    text = jnp.ones((size, 24, unet.config.text_dim))
    shares = []
    for share in (0.0, 0.5, 1.0):
        config.customize.update(recolor=share, caption_dropout=0.0)
        tuning = make_recipe(config.customize, unet, folder.solver())
        prepared = tuning.prepare(
            jax.random.key(0), {"empty": 0 * text[0]}, {"video": video, "text": text}
        )
        told = np.asarray(prepared.text).any((1, 2))
        same = np.isclose(prepared.example.clean, video, atol=1e-6).all((1, 2, 3, 4))
        assert same[told].all()
        shares.append(1 - told.mean())
        assert (same & ~told).sum() <= 0.2 * size
    assert shares[0] == 0
    assert 0.3 < shares[1] < 0.7
    assert shares[2] == 1


def test_a_recolored_clip_is_what_it_was_in_other_channels():
    videos = np.random.default_rng(0).uniform(-1, 1, (64, 2, 3, 4, 3)).astype(np.float32)
    made = np.asarray(recolored(jax.random.key(0), jnp.asarray(videos)))
    kinds = set()
    for before, after in zip(videos, made, strict=True):
        signed = {(i, s): s * before[..., i] for i in range(3) for s in (1, -1)}
        kind = [
            name for j in range(3) for name, own in signed.items() if (own == after[..., j]).all()
        ]
        assert sorted(i for i, _ in kind) == [0, 1, 2]
        kinds.add(tuple(kind))
    assert len(kinds) > 24  # of 48


def test_what_is_frozen_has_no_state(config, checkpoint):
    params = parameters(checkpoint)
    for choice, rank in (("temporal_attention_qkv", 0), ("all", 2)):
        config.customize.update(trainable=choice, rank=rank)
        trained, frozen = first_trained(params, config.customize)
        own = {id(leaf) for leaf in jax.tree.leaves(trained)}
        assert not own & {id(leaf) for leaf in jax.tree.leaves(frozen)}
        state = init_state(make_optimizer(config.customize), trained, frozen)
        kept = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
        assert {leaf.shape for leaf in kept} == {leaf.shape for leaf in jax.tree.leaves(trained)}
        size = sum(leaf.size for leaf in jax.tree.leaves(trained))
        assert size < sum(leaf.size for leaf in jax.tree.leaves(params)) / 2
        # Two moments and the average of each number that is trained.
        assert sum(leaf.size for leaf in kept) == 3 * size


@pytest.mark.slow
def test_every_clip_is_learnt_from(config, checkpoint, clip, tmp_path):
    other = tmp_path / "zigzag.mp4"
    write_mp4(other, render(Taught(TAUGHT, "zigzag"), 9, 32, 48), 7.5)
    config.customize.update(batch_size=1, steps=2)
    config.prompt = "one | another"
    found = []
    for second in (clip, other):
        config.video, config.out = f"{clip}|{second}", str(tmp_path / f"{second.stem}.safetensors")
        found.append(load_adapter(customize(config), parameters(checkpoint)))
    assert found[0].about["prompts"] == "one | another"
    kernel = "mid/temporal_attention_0/proj_in/kernel"
    assert (found[0].changes[kernel][0] != found[1].changes[kernel][0]).any()


def test_an_adapter_while_sampling(config, checkpoint, tmp_path):
    path = customize(config)
    settings, made, clips, compiled = {}, {}, {}, []
    for weight in (0, 0.5, 1):
        section = small_config("keyframes")
        section.keyframes.adapters = (f"{path}={weight}",)
        engine = Engine(section, checkpoint, ["keyframes"])
        results = Arrays(tmp_path / str(weight))
        results.begin(["in a circle"], [0])
        engine.run(["in a circle"], [0], results)
        clips[weight] = results.load(0, "keyframes")
        compiled.append(advance._cache_size())
        made[weight] = by_path(engine.params("keyframes")["unet"])
        settings[weight] = json.dumps(engine.made_by["keyframes"])
    kernel = "mid/temporal_attention_0/proj_in/kernel"
    half = (made[0][kernel] + made[1][kernel]) / 2
    np.testing.assert_allclose(made[0.5][kernel], half, atol=1e-5)
    assert len(set(settings.values())) == 3
    assert 0 < compiled[0] == compiled[2]
    assert (clips[0] != clips[1]).any()


def test_an_adapter_holds_at_the_timesteps_that_it_was_trained_for(config, checkpoint):
    config.customize.objective.timesteps = (150, 900)
    section = small_config("keyframes")
    section.keyframes.adapters = (str(customize(config)),)
    before = by_path(parameters(checkpoint))
    parts = Engine(section, checkpoint, ["keyframes"]).params("keyframes")["unet"].parts
    assert [first for first, _ in parts] == [0, 150, 900]
    for first, params in parts:
        changed = {name for name, leaf in by_path(params).items() if (leaf != before[name]).any()}
        assert all("temporal_attention" in name for name in changed)
        assert bool(changed) == (first == 150)


def test_an_adapter_is_put_into_a_checkpoint(config, checkpoint, tmp_path, capsys):
    config.customize.objective.timesteps = (150, 1000)
    path, merged = customize(config), tmp_path / "merged"
    merge(checkpoint, merged, [f"{path}=0.5"])
    assert "is for timesteps 150 to 999; merged, it changes all" in capsys.readouterr().err
    with pytest.raises(InputError, match="made for another checkpoint"):
        merge(merged, tmp_path / "twice", [str(path)])
    before = parameters(checkpoint)
    assert_same(parameters(merged), apply_adapters(before, [(load_adapter(path, before), 0.5)]))
    for adapters, message in (([str(path)], "exists already"), (["none"], "no adapter none")):
        with pytest.raises(InputError, match=message):
            merge(checkpoint, merged if "exists" in message else tmp_path / "new", adapters)
    assert not [each for each in tmp_path.iterdir() if "partial" in each.name]


def test_clips_with_and_without_an_adapter_are_measured(config, checkpoint, tmp_path, capsys):
    path = customize(config)
    settings = small_config("keyframes")
    adapters = [f"{path}=0.5", f"{path}=1"]
    how = {"count": 3, "seed": 0, "overrides": {}, "sheet": tmp_path / "new" / "sheet.png"}
    rows = follow(settings, str(checkpoint), "circle", adapters, **how)
    assert list(rows) == ["untuned", *adapters]
    for row in rows.values():
        assert list(row) == ["path", "axes", "size", "color", "shape", "background"]
        assert row["axes"] <= row["path"]
    printed = capsys.readouterr().out
    assert f"{path}=0.5" in printed
    assert "numbers, " in printed
    assert (tmp_path / "new" / "sheet.png").is_file()


@pytest.mark.parametrize("backgrounds", [False, True])
def test_what_follows_the_taught_path_is_counted(checkpoint, tmp_path, monkeypatch, backgrounds):
    settings = small_config("keyframes")
    path = Taught(TAUGHT, "spiral").centroid(np.linspace(0, DURATION, 3))
    shown = motion.draw(3, 0, backgrounds)
    shown[2] = shown[2]._replace(color="red")
    measured = [Measurement(one, own) for one, own in zip(shown, (path, path, -path), strict=True)]
    monkeypatch.setattr(motion, "judge", lambda *_: {"keyframes": measured})
    how = {"count": 3, "seed": 0, "overrides": {}, "sheet": tmp_path / "sheet.png"}
    given = (settings, str(checkpoint), "spiral", [])
    row = follow(*given, **how, backgrounds=backgrounds)["untuned"]
    assert row == pytest.approx(
        {"path": 1, "axes": 1, "size": 1, "color": 2 / 3, "shape": 1, "background": 1}
    )


def test_bad_input_is_one_line(config, clip, tmp_path):
    short = tmp_path / "short.mp4"
    write_mp4(short, render(Taught(TAUGHT, "circle"), 2, 32, 48), 7.5)
    for changes, message in (
        ({"video": ""}, "0 clip"),
        ({"video": f"{clip}|{clip}"}, "2 clip.* and 1 prompt"),
        ({"video": str(short)}, r"cannot use .*short.mp4 .* has 2 frame.s., but 3 are needed"),
        ({"video": str(tmp_path / "none.mp4")}, "cannot use .*none.mp4 .*: No such file"),
        ({"checkpoint": ""}, "give --config.checkpoint"),
        ({"customize.trainable": "legs"}, "'legs', not one of"),
        ({"customize.rank": -1}, "rank is -1"),
        ({"customize.remat": "some"}, "remat is 'some'"),
        ({"out": str(tmp_path / "adapter.bin")}, "ends in .safetensors"),
        ({"out": str(clip)}, "exists: give another"),
        ({"out": str(short / "adapter.safetensors")}, "cannot be written"),
        ({"customize.steps": 0}, "steps is 0"),
        ({"customize.learning_rate": 1e30}, "learning_rate is 1e.30, but must be 0 to 1000"),
        ({"customize.accumulate": 3}, "batch_size 2 cannot be split into 3 parts"),
        ({"customize.learning_rate": 1e3, "customize.weight_decay": 1e3}, "not finite"),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        with pytest.raises(InputError, match=message):
            customize(changed)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_clip_becomes_noise_and_noise_the_clip(checkpoint, clip, tmp_path):
    config = small_config("keyframes")
    found = invert_clip(config, str(checkpoint), clip, "in a circle", tmp_path, steps=["20"])
    assert found > 20  # of a random network
    assert {path.name for path in tmp_path.iterdir()} == {
        "keyframes.noise.npz",
        "keyframes.reconstruction.mp4",
    }
    config = small_config("keyframes")
    config.from_noise = str(tmp_path / "keyframes.noise.npz")
    for guidance, threshold in ((1.0, None), (3.0, 0.995)):
        config.keyframes.guidance = guidance
        engine = Engine(config, checkpoint, ["keyframes"])
        solver = engine.samplers["keyframes"].solver
        assert (solver.config.kind, solver.config.threshold) == ("ddim", threshold)
        assert solver.num_steps == engine.made_by["keyframes"]["steps"] == 20
        results = Arrays(tmp_path / str(guidance))
        results.begin(["in a circle"], [0])
        engine.run(["in a circle"], [0], results)
        made = results.load(0, "keyframes")
        likeness = psnr(np.clip(made, -1, 1), read_clip(clip, ClipSpec(3, 4, 6)), peak=2)
        assert abs(likeness - found) < 0.1 if guidance == 1 else likeness < found
    config.keyframes.frames = 5
    with pytest.raises(InputError, match="is noise of"):
        Engine(config, checkpoint, ["keyframes"])
