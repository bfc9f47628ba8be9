"""The CLIP text encoder against recordings of transformers' CLIPTextModel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.checkpoints.tables import CLIP as TABLE
from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPText
from show1_jax.models.ops.activation import quick_gelu
from tests.conftest import assert_close, assert_precise, golden, loaded, network_folder


@pytest.fixture(scope="module")
def case():
    return golden("clip_text")


@pytest.fixture(scope="module")
def config():
    return loaded(network_folder("clip_text"))[0].config


@pytest.fixture(scope="module")
def params():
    _, stored = loaded(network_folder("clip_text"))
    return jax.tree.map(lambda v: np.asarray(v, np.float32), stored)


def ids(case) -> np.ndarray:
    return case.inputs["input_ids"].astype(np.int32)


def test_encodes_as_recorded(case, config, params):
    out, state = CLIPText(config).apply({"params": params}, ids(case), capture_intermediates=True)
    assert_close(out, case.outputs["last_hidden_state"], 2e-5)
    for i in range(config.num_layers):
        (block,) = state["intermediates"][f"block_{i}"]["__call__"]
        assert_close(block, case.outputs[f"mid.hidden_states.{i + 1}"], 2e-5, f"block {i}")


def test_encodes_with_a_padding_mask_as_recorded(case, config, params):
    mask = case.inputs["attention_mask"].astype(np.int32)
    assert not mask.all()
    out = CLIPText(config).apply({"params": params}, ids(case), mask)
    assert_close(out, case.outputs["last_hidden_state_with_attention_mask"], 2e-5)


def test_a_token_does_not_see_those_after_it(case, config, params):
    model = CLIPText(config)
    other = ids(case).copy()
    other[:, 4:] = 5
    before = model.apply({"params": params}, ids(case))
    after = model.apply({"params": params}, other)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])


def test_quick_gelu_is_another_network(case, config, params):
    quick = dataclasses.replace(config, activation="quick_gelu")
    out = CLIPText(quick).apply({"params": params}, ids(case))
    assert np.isfinite(out).all()
    assert np.abs(out - case.outputs["last_hidden_state"]).max() > 1e-3
    x = np.linspace(-4, 4, 9, dtype=np.float32)
    np.testing.assert_allclose(quick_gelu(x), x / (1 + np.exp(-1.702 * x)), rtol=1e-6)


def test_position_ids_are_made_again(case):
    (key,) = TABLE.buffers
    stored = case.weights()[key]
    made = TABLE.buffers[key](stored.shape)
    np.testing.assert_array_equal(made, stored)
    assert made.dtype == stored.dtype


def test_half_precision_parameters_compute_as_if_cast(case, config, params):
    half = jax.tree.map(lambda v: v.astype(np.float16), params)
    model = CLIPText(config)
    np.testing.assert_array_equal(
        model.apply({"params": half}, ids(case)), model.apply({"params": params}, ids(case))
    )


def test_bfloat16_is_close(case, config, params):
    out = CLIPText(config, dtype=jnp.bfloat16).apply({"params": params}, ids(case))
    assert out.dtype == jnp.bfloat16
    assert_close(out, case.outputs["last_hidden_state"], 5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_gpus_encode_as_recorded(case, config, params, dtype, tell):
    out = CLIPText(config, dtype=dtype).apply({"params": params}, ids(case))
    tell(assert_precise(out, case.outputs["last_hidden_state"], dtype, "CLIP"))


def test_refuses_what_it_cannot_compute(case, config, params):
    with pytest.raises(InputError, match="takes at most 7"):
        CLIPText(config).apply({"params": params}, np.zeros((1, 8), np.int32))
    relu = dataclasses.replace(config, activation="relu")
    with pytest.raises(InputError, match="relu"):
        CLIPText(relu).apply({"params": params}, ids(case))
