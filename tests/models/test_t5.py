"""The T5 encoder against recordings of transformers' T5EncoderModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from show1_jax.errors import InputError
from show1_jax.models.t5 import T5Encoder, relative_position_buckets
from tests.conftest import assert_close, assert_precise, golden, loaded, network_folder


@pytest.fixture(scope="module")
def case():
    return golden("t5_encoder")


@pytest.fixture(scope="module")
def config():
    return loaded(network_folder("t5_encoder"))[0].config


@pytest.fixture(scope="module")
def params():
    _, stored = loaded(network_folder("t5_encoder"))
    return jax.tree.map(lambda v: np.asarray(v, np.float32), stored)


def call(case) -> tuple[np.ndarray, np.ndarray]:
    return (
        case.inputs["input_ids"].astype(np.int32),
        case.inputs["attention_mask"].astype(np.int32),
    )


def test_encodes_as_recorded(case, config, params):
    out, state = T5Encoder(config).apply(
        {"params": params}, *call(case), capture_intermediates=True
    )
    assert_close(out, case.outputs["last_hidden_state"], 2e-5)
    for i in range(config.num_layers):
        (block,) = state["intermediates"][f"block_{i}"]["__call__"]
        assert_close(block, case.outputs[f"mid.block.{i}"], 2e-5, f"block {i}")


def test_position_bias_as_recorded(case, config, params):
    length = case.inputs["input_ids"].shape[1]
    bias = T5Encoder(config).apply({"params": params}, length, method="position_bias")
    recorded = case.outputs["mid.position_bias"]
    np.testing.assert_array_equal(bias, np.broadcast_to(recorded, bias.shape))


@pytest.mark.parametrize(
    ("buckets", "max_distance"), [(32, 128), (8, 16), (16, 64), (64, 256), (32, 100)]
)
def test_buckets_are_those_of_pytorch(buckets, max_distance):
    length = 300
    position = torch.arange(length)
    relative = position[None, :] - position[:, None]
    half, exact = buckets // 2, buckets // 4
    distance = relative.abs()
    far = torch.log(distance.float() / exact) / np.log(max_distance / exact) * (half - exact)
    far = torch.clamp(exact + far.nan_to_num(neginf=0.0).long(), max=half - 1)
    expected = torch.where(distance < exact, distance, far) + half * (relative > 0)
    np.testing.assert_array_equal(
        relative_position_buckets(length, buckets, max_distance), expected.numpy()
    )


def test_padding_changes_nothing_before_it(case, config, params):
    ids, mask = call(case)
    model = T5Encoder(config)
    row = int(np.argmin(mask.sum(1)))
    used = int(mask[row].sum())
    assert used < ids.shape[1]
    whole = model.apply({"params": params}, ids[row : row + 1], mask[row : row + 1])
    alone = model.apply({"params": params}, ids[row : row + 1, :used], mask[row : row + 1, :used])
    assert_close(whole[:, :used], alone, 2e-5)


def test_half_precision_parameters_compute_as_if_cast(case, config, params):
    half = jax.tree.map(lambda v: v.astype(np.float16), params)
    model = T5Encoder(config)
    np.testing.assert_array_equal(
        model.apply({"params": half}, *call(case)), model.apply({"params": params}, *call(case))
    )


def test_bfloat16_is_close(case, config, params):
    model = T5Encoder(config, dtype=jnp.bfloat16)
    out = model.apply({"params": params}, *call(case))
    assert out.dtype == jnp.bfloat16
    assert_close(out, case.outputs["last_hidden_state"], 5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gpus_encode_as_recorded(case, config, params, dtype, tell):
    out = T5Encoder(config, dtype=dtype).apply({"params": params}, *call(case))
    tell(assert_precise(out, case.outputs["last_hidden_state"], dtype, "T5"))


def test_bfloat16_survives_activations_that_overflow_float16(case, config, params):
    # The published encoder reaches values beyond 65504 in its residual stream.
    large = jax.tree.map(lambda v: v, params)
    large["token_embedding"] = {"embedding": params["token_embedding"]["embedding"] * 1e6}
    model = T5Encoder(config, dtype=jnp.bfloat16)
    assert np.isfinite(np.asarray(model.apply({"params": large}, *call(case)), np.float32)).all()


def test_float16_is_refused(case, config, params):
    with pytest.raises(InputError, match="bfloat16"):
        T5Encoder(config, dtype=jnp.float16).apply({"params": params}, *call(case))
