"""What the stages promise beyond the recordings, on networks small enough to compile quickly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.checkpoints.networks import abstract_params
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.errors import InputError
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.stages import interpolation as gaps
from show1_jax.stages import super_resolution as windowed
from show1_jax.stages import translation as latent
from show1_jax.stages import upscaling
from show1_jax.stages.sampling import (
    AUGMENTATION,
    START,
    ByTimestep,
    Conditions,
    Sampler,
    Steering,
    advance,
    clip_keys,
    draw,
)
from tests.conftest import golden
from tests.stages import made
from tests.stages.made import BASE, COSINE, DPM, call

DDPM = SolverConfig("ddpm", COSINE, variance="learned_range", threshold=0.95)


def random_params(module):
    """Parameters that make every layer matter, without compiling an initialiser."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        kind = path[-1].key
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if kind == "kernel" else 0.1
        noise = rng.normal(size=leaf.shape) * scale
        return jnp.asarray(noise + (kind == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, abstract_params(module))


def make(solver: SolverConfig, steps: int, dropout: bool = False, **changes):
    """A sampler and its parameters."""
    unet = UNet(dataclasses.replace(BASE, **changes))
    return Sampler(unet, make_solver(solver, steps), dropout), random_params(unet)


@pytest.fixture(scope="module")
def text():
    return jax.random.normal(jax.random.key(7), (2, 2, 5, 8))


@pytest.fixture(scope="module")
def base():
    return make(DPM, 4)


@pytest.fixture(scope="module")
def upscaler():
    return make(DDPM, 3, in_channels=6, noise_level=True)


SEEDS = jnp.array([3, 5], jnp.uint32)


def second(stage, *batched, **options):
    """A stage's result for the second item, from a batch of two and alone."""
    both = stage(*batched, **options)[1]
    alone = stage(*(x[:, 1:] if i == 0 else x[1:] for i, x in enumerate(batched)), **options)[0]
    return both, alone


def test_keyframes_do_not_depend_on_the_batch(base, text):
    both, alone = second(lambda t, s: made.keyframes().sample(call(*base, t, s), {}), text, SEEDS)
    assert both.shape == (3, 4, 6, 3)
    np.testing.assert_allclose(both, alone, atol=1e-4)


def test_dropout_is_on_when_asked_and_does_not_depend_on_the_batch(text):
    sampler, params = make(DPM, 2, dropout=True)

    def sample(t, s, sampler=sampler):
        return made.keyframes().sample(call(sampler, params, t, s), {})

    both, alone = second(sample, text, SEEDS)
    np.testing.assert_allclose(both, alone, atol=1e-4)
    saving = sample(text, SEEDS, dataclasses.replace(sampler, low_memory=True))
    np.testing.assert_allclose(saving[1], both, atol=1e-4)
    without = sample(text, SEEDS, dataclasses.replace(sampler, dropout=False))[1]
    assert np.abs(both - without).max() > 1e-3


@pytest.mark.slow
def test_interpolation_does_not_depend_on_the_batch(text):
    own = make(DPM, 2, in_channels=7)
    frames = jax.random.uniform(jax.random.key(0), (2, 3, 4, 6, 3), minval=-1)
    both, alone = second(
        lambda t, s, k: made.interpolation().sample(call(*own, t, s), {"keyframes": k}),
        text, SEEDS, frames,
    )  # fmt: skip
    assert both.shape == (5, 4, 6, 3)
    np.testing.assert_allclose(both, alone, atol=1e-4)


@pytest.mark.slow
def test_super_resolution_does_not_depend_on_the_batch(upscaler, text):
    key = jax.random.key(0)
    small = jax.random.uniform(key, (2, 4, 4, 6, 3), minval=-1)
    first = jax.random.uniform(key, (2, 8, 12, 3), minval=-1)
    both, alone = second(
        lambda t, s, v, f: made.super_resolution().sample(
            call(*upscaler, t, s), {"interpolation": v, "first_frame": f}
        ),
        text, SEEDS, small, first,
    )  # fmt: skip
    assert both.shape == (4, 8, 12, 3)
    np.testing.assert_allclose(both, alone, atol=1e-4)


@pytest.fixture(scope="module")
def vae():
    vae = VAE(VAEConfig(channels=(8, 16), layers_per_block=1, norm_groups=4))
    return vae, random_params(vae)


@pytest.fixture(scope="module")
def translator():
    return make(
        SolverConfig("dpm_solver", NoiseSchedule("scaled_linear", 0.00085, 0.012)), 5,
        space="latent", in_channels=4, out_channels=4, text_projection_dim=None,
        text_pooling_heads=None, spatial_heads="number",
    )  # fmt: skip


def translate(translator, vae, **changes):
    stage = made.translation(vae[0], **changes)
    return lambda t, s, v: stage.sample(
        call(*translator, t, s, vae=vae[1]), {"super_resolution": v}
    )


def test_translation_does_not_depend_on_the_batch_or_the_chunks(translator, vae, text):
    video = jax.random.uniform(jax.random.key(0), (2, 3, 8, 8, 3), minval=-1)
    both, alone = second(translate(translator, vae), text, SEEDS, video)
    assert both.shape == (3, 8, 8, 3)
    np.testing.assert_allclose(both, alone, atol=1e-4)
    for vae_frames in (1, 5):
        chunked = translate(translator, vae, vae_frames=vae_frames)(text, SEEDS, video)[1]
        np.testing.assert_allclose(both, chunked, atol=1e-4)


def test_translation_starts_nearer_to_its_input_the_less_it_is_noised(
    translator, vae, text, monkeypatch
):
    video = jax.random.uniform(jax.random.key(0), (2, 3, 8, 8, 3), minval=-1)
    latents = latent.encode(*vae, video, 2)[0] * vae[0].config.scaling_factor
    starts = []

    def fake_run(call, start, conditions, keys, first_step):
        starts.append((start, first_step))
        return start

    monkeypatch.setattr(latent, "run", fake_run)
    for strength in (0.2, 1.0):
        translate(translator, vae, strength=strength)(text, SEEDS, video)
    (weak, last_step), (strong, first_step) = starts
    assert (last_step, first_step) == (4, 0)
    assert jnp.abs(weak - latents).mean() < jnp.abs(strong - latents).mean()
    with pytest.raises(InputError, match="strength"):
        translate(translator, vae, strength=0.1)(text, SEEDS, video)


def test_values_never_compile_again(base, upscaler, translator, vae, text):
    def everything(guidance, seeds, level, strength):
        made.keyframes().sample(call(*base, text, seeds, guidance), {})
        frames = {"interpolation": jnp.zeros((2, 4, 4, 6, 3))}
        stage = made.first_frame(noise_level=level)
        stage.sample(call(*upscaler, text, seeds, guidance), frames)
        stage = made.translation(vae[0], strength=strength)
        stage.sample(
            call(*translator, text, seeds, guidance, vae=vae[1]),
            {"super_resolution": jnp.zeros((2, 3, 8, 8, 3))},
        )

    everything(3.0, SEEDS, 150, 0.8)
    functions = (advance, draw, clip_keys, upscaling.augment, latent.encode)
    compiled = [f._cache_size() for f in functions]
    everything(7.5, SEEDS + 11, 30, 0.4)
    assert compiled == [f._cache_size() for f in functions]


def test_guidance_of_one_and_below_ignores_the_negative_prompt(base, text):
    def sample(text, guidance):
        return made.keyframes().sample(call(*base, text, SEEDS, guidance), {})

    other = text.at[0].set(0)
    np.testing.assert_allclose(sample(text, 1.0), sample(other, 1.0), atol=1e-4)
    np.testing.assert_allclose(sample(text, 0.0), sample(other, 1.0), atol=1e-4)
    assert np.abs(sample(text, 4.0) - sample(other, 4.0)).max() > 1e-3


def test_without_guidance_half_the_work_gives_the_same(base, text):
    sampler, params = base
    unguided = dataclasses.replace(sampler, guided=False)
    expected, found = (
        made.keyframes().sample(call(own, params, text, SEEDS, 1.0), {})
        for own in (sampler, unguided)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_progress_counts_every_step(base, text):
    seen = []
    own = call(*base, text, SEEDS, progress=lambda *done: seen.append(done))
    made.keyframes().sample(own, {})
    assert seen == [(0, 4, "compiling"), *((done, 4) for done in range(5))]


PREVIEWS = {
    "keyframes": ((1, 3, 4, 6, 3), lambda clip: clip),
    "super_resolution": ((1, 3, 8, 12, 3), lambda clip: clip[:, -3:]),  # the window
    "translation": ((1, 1, 8, 8, 3), lambda clip: clip[:, 1:2]),
}


@pytest.mark.parametrize("name", PREVIEWS)
def test_what_is_denoised_can_be_seen_and_becomes_the_result(
    name, base, upscaler, translator, vae, text
):
    """The last prediction is what the stage returns but for the last step's noise."""
    stage, network, inputs = {
        "keyframes": (made.keyframes(), base, {}),
        "super_resolution": (
            made.super_resolution(), upscaler,
            {"interpolation": jnp.zeros((1, 4, 4, 6, 3)), "first_frame": jnp.ones((1, 8, 12, 3))},
        ),
        "translation": (
            made.translation(vae[0]), translator, {"super_resolution": jnp.zeros((1, 3, 8, 8, 3))}
        ),
    }[name]  # fmt: skip
    seen = []

    def watch(clean):
        seen.append(stage.preview(clean, {"vae": vae[1]}))

    own = call(*network, text[:, :1], SEEDS[:1], vae=vae[1])
    result = stage.sample(dataclasses.replace(own, watch=watch), inputs)
    shape, part = PREVIEWS[name]
    assert {clip.shape for clip in seen} == {shape}
    np.testing.assert_allclose(seen[-1], part(result), atol=0.05)


def test_parameters_by_timestep(base, text):
    sampler, params = base
    other = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    compiled, timesteps = advance._cache_size(), sampler.solver.timesteps

    def sample(params):
        return made.keyframes().sample(call(sampler, params, text, SEEDS), {})

    same = ByTimestep(((0, params), (500, params)))
    np.testing.assert_array_equal(sample(same), sample(params))
    noisy = ByTimestep(((0, params), (int(timesteps[1]), other)))
    keys = clip_keys(SEEDS, "keyframes")
    state = sampler.solver.init(draw(keys, START, (3, 4, 6, 3)))
    steering = Steering(jnp.float32(3), keys)
    for step, own in enumerate((other, other, params, params)):
        steps = (jnp.int32(step), jnp.int32(step + 1))
        state = advance(sampler, own, state, Conditions(text), steering, steps)
    np.testing.assert_array_equal(sample(noisy), state.sample)
    assert advance._cache_size() <= compiled + 1


def test_keys_tell_seeds_and_stages_apart():
    keys = [clip_keys(SEEDS, stage) for stage in ("keyframes", "interpolation")]
    data = np.concatenate([jax.random.key_data(k) for k in keys])
    assert len(np.unique(data, axis=0)) == 4
    noise = draw(keys[0], 0, (100,))
    assert np.abs(noise[0] - noise[1]).max() > 0.1


@pytest.mark.parametrize(
    ("frames", "window", "expected"),
    [
        (29, 8, [0, 7, 14, 21]),
        (30, 8, [0, 7, 14, 21, 22]),
        (9, 8, [0, 1]),
        (8, 8, [0]),
        (1, 1, [0]),
        (3, 2, [0, 1]),
    ],
)
def test_windows(frames, window, expected):
    assert list(upscaling.windows(frames, window)) == expected
    made = {0}
    for start in expected:
        assert start in made, "a window continues from a frame that is there"
        made |= set(range(start, start + window))
    assert made == set(range(frames))


@pytest.mark.parametrize(("frames", "window"), [(7, 3), (6, 3), (5, 8), (1, 1)])
def test_windows_of_a_finished_clip_are_joined_again(frames, window):
    video = jax.random.normal(jax.random.key(0), (frames, 8, 16, 3))
    make_stage = made.super_resolution if frames > 1 else made.first_frame
    stage = make_stage(frames=frames, window=window, width=16, small=(2, 4), noise_level=50)
    key = clip_keys(jnp.zeros(1, jnp.uint32), stage.name)[0]
    example = stage.split(video, key, {})
    again = stage.join(example.clean[None], {})[0]
    np.testing.assert_array_equal(again if frames > 1 else again[None], video)
    assert example.clean.shape == stage.pieces_shape
    assert example.noise_level.tolist() == [50] * len(example.clean)
    if frames > 1:  # each goes on from the frame that it shares with the one before
        np.testing.assert_array_equal(example.frames[:, 0], example.clean[:, 0])
    noise = example.frames - upscaling.upsample(upscaling.shrink(example.clean, 2, 4), 8, 16)
    # All have the noise that sampling's windows have.
    np.testing.assert_allclose(noise[0, -1], noise[-1, -1], atol=0.2)


def test_gaps_of_a_finished_clip_are_joined_again():
    video = jax.random.normal(jax.random.key(0), (7, 2, 4, 3))
    stage = made.interpolation(keyframes=4, frames=7, height=2, width=4)
    example = stage.split(video, None, {})
    assert example.clean.shape == stage.pieces_shape == (3, 3, 2, 4, 3)
    np.testing.assert_array_equal(stage.join(example.clean[None], {})[0], video)
    np.testing.assert_array_equal(example.frames, gaps.condition(video[None, ::2], 3))


def test_what_cannot_be_split_says_so():
    with pytest.raises(InputError, match="one keyframe leaves no gap"):
        made.interpolation().split(jnp.zeros((1, 2, 4, 3)), None, {})
    with pytest.raises(InputError, match="16x8 is no multiple of the keyframes' size, 5x4"):
        upscaling.shrink(jnp.zeros((1, 8, 16, 3)), 4, 5)


def test_a_window_of_one_frame_cannot_continue():
    with pytest.raises(InputError, match="at least 2"):
        list(upscaling.windows(2, 1))


def test_each_window_continues_from_the_one_before(monkeypatch):
    told = []

    def fake_run(call, start, conditions, keys):
        told.append(np.asarray(conditions.frames[:, 0]))
        return jnp.full(start.shape, float(len(told)))

    monkeypatch.setattr(windowed, "run", fake_run)
    inputs = {
        "interpolation": jnp.zeros((2, 5, 4, 6, 3)),
        "first_frame": jnp.full((2, 8, 12, 3), 0.5),
    }
    result = made.super_resolution(frames=5).sample(call(None, None, None, SEEDS), inputs)
    assert (told[0] == 0.5).all()
    assert (told[1] == 1.0).all()
    # The frame that two windows share is the later one's.
    assert np.asarray(result[0, :, 0, 0, 0]).tolist() == [1, 1, 2, 2, 2]


def test_gaps_share_their_noise_and_the_later_one_keeps_the_shared_frame(monkeypatch):
    starts = []

    def fake_run(call, start, conditions, keys):
        starts.append(np.asarray(start))
        return jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None, None], start.shape)

    monkeypatch.setattr(gaps, "run", fake_run)
    own = call(None, None, jnp.zeros((2, 2, 5, 8)), SEEDS)
    result = made.interpolation().sample(own, {"keyframes": jnp.zeros((2, 3, 2, 2, 3))})
    (start,) = starts
    assert (start[0] == start[1]).all()
    assert (start[0] != start[2]).any()
    assert np.asarray(result[0, :, 0, 0, 0]).tolist() == [0, 0, 1, 1, 1]


def test_glue_as_recorded():
    case = golden("stage_glue")
    video = np.moveaxis(case.inputs["video"], 1, -1)
    upsampled = upscaling.upsample(video, *case.config["upsample_to_hw"])
    expected = np.moveaxis(case.outputs["sr_bilinear_align_corners"], 1, -1)
    np.testing.assert_allclose(upsampled, expected, atol=1e-5)
    blend = gaps.condition(video[:, [0, -1]], video.shape[1])
    expected = np.moveaxis(case.outputs["interp_condition"], 1, -1)
    np.testing.assert_allclose(blend[..., :3], expected, atol=1e-6)


def test_the_first_step_of_a_strength_is_the_released_one():
    # 50 steps at 0.8: 40 are executed.
    solver = make_solver(SolverConfig("dpm_solver", COSINE, spacing="linspace"), 50)
    assert solver.num_steps - solver.first_step(0.8) == 40
    assert START != AUGMENTATION
