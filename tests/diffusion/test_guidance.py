import jax
import numpy as np

from show1_jax.diffusion.guidance import guide

UNCONDITIONAL, CONDITIONAL = (
    np.random.default_rng(0).normal(size=(2, 1, 2, 4, 4, 6)).astype(np.float32)
)


def test_only_the_mean_is_guided():
    guided = guide(UNCONDITIONAL, CONDITIONAL, 9.0, channels=3)
    expected = 9 * CONDITIONAL[..., :3] - 8 * UNCONDITIONAL[..., :3]
    np.testing.assert_allclose(guided[..., :3], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(guided[..., 3:], CONDITIONAL[..., 3:])


def test_scales_0_and_1_are_the_branches_themselves():
    off = guide(UNCONDITIONAL, CONDITIONAL, 0.0, channels=6)
    on = guide(UNCONDITIONAL, CONDITIONAL, 1.0, channels=6)
    np.testing.assert_array_equal(off, UNCONDITIONAL)
    np.testing.assert_allclose(on, CONDITIONAL, rtol=1e-6, atol=1e-6)


def test_another_scale_does_not_recompile_and_bfloat16_is_guided_in_fp32():
    traces = []

    @jax.jit
    def run(scale, unconditional, conditional):
        traces.append(scale)
        return guide(unconditional, conditional, scale, channels=3)

    halves = (jax.numpy.asarray(a, jax.numpy.bfloat16) for a in (UNCONDITIONAL, CONDITIONAL))
    unconditional, conditional = halves
    for scale in (4.0, 7.0, 9.0):
        assert run(scale, unconditional, conditional).dtype == np.float32
    assert len(traces) == 1
