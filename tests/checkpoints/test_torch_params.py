"""Key tables: every tensor of the release to our parameters and back, bit for bit."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from show1_jax.checkpoints import tables
from show1_jax.checkpoints.keys import CONV, CONV_FRAMES, DENSE, SAME, KeyTable, same_names, under
from show1_jax.checkpoints.network_config import vae_config
from show1_jax.checkpoints.networks import Network, abstract_params
from show1_jax.checkpoints.torch_files import find_weights
from show1_jax.checkpoints.torch_params import (
    cast,
    contiguous,
    digest,
    keys_by_path,
    params_from_torch,
    torch_keys,
)
from show1_jax.convert import load_diffusers
from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE
from tests.checkpoints.weights import (
    network_copy,
    read_tensors,
    same_params,
    write_tensors,
)
from tests.conftest import RELEASE, loaded, network_folder

TABLES = {UNet: tables.UNET, VAE: tables.VAE, T5Encoder: tables.T5, CLIPText: tables.CLIP}
NETWORKS = [
    "IF-II-L-v1.0/unet",
    "show-1-base/text_encoder",
    "show-1-base/unet",
    "show-1-interpolation/unet",
    "show-1-sr1/unet",
    "show-1-sr2/text_encoder",
    "show-1-sr2/unet",
    "show-1-sr2/vae",
]
VAE_FOLDER, CLIP_FOLDER = RELEASE / "show-1-sr2/vae", RELEASE / "show-1-sr2/text_encoder"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_key_is_used_once_and_goes_back(name):
    module, params = loaded(RELEASE / name)
    table, flat = TABLES[type(module)], flatten_dict(params, sep="/")
    stored = find_weights(RELEASE / name).tensors
    uses = Counter(table.to_ours(key)[0] for key in stored if key not in table.buffers)
    assert uses.keys() == flat.keys()
    twice = {"token_embedding/embedding"} if "encoder.embed_tokens.weight" in stored else set()
    assert {path for path, count in uses.items() if count > 1} == twice

    made = {
        key: contiguous(layout.to_torch(np.asarray(flat[path])))
        for path, keys in keys_by_path(table, stored).items()
        for key, layout in keys
    }
    assert made.keys() == stored.keys() - table.buffers.keys()
    for key, array in made.items():
        expected = stored[key].read()
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape), key
        assert array.flags.c_contiguous, key
        assert array.tobytes() == expected.tobytes(), key


@pytest.mark.parametrize("name", ["vae", "clip_text", "t5_encoder"])
def test_parameters_are_those_of_a_new_network(name):
    module, params = loaded(network_folder(name))
    made = jax.tree.map(lambda v: v.shape, abstract_params(module))
    assert made == jax.tree.map(lambda v: v.shape, params)


@pytest.mark.parametrize("table", TABLES.values(), ids=["unet", "vae", "t5", "clip"])
def test_rows_are_read_back(table):
    for torch_pattern, our_pattern, layout in table.rows:
        assert torch_pattern.count("{}") == our_pattern.count("{}")
        path, found = table.to_ours(torch_pattern.replace("{}", "7"))
        key, back = table.to_torch(path)
        assert found is back is layout
        # A second spelling is written as the first.
        assert table.to_ours(key) == (path, layout)


@pytest.mark.parametrize(
    ("layout", "torch_shape", "our_shape"),
    [
        (SAME, (5,), (5,)),
        (DENSE, (5, 3), (3, 5)),
        (CONV, (5, 3, 2, 4), (2, 4, 3, 5)),
        (CONV_FRAMES, (5, 3, 2, 1, 1), (2, 3, 5)),
    ],
)
def test_layouts_are_inverse(layout, torch_shape, our_shape):
    array = np.arange(np.prod(torch_shape)).reshape(torch_shape)
    ours = layout.to_jax(array)
    assert ours.shape == our_shape
    np.testing.assert_array_equal(layout.to_torch(ours), array)


def test_patterns_match_whole_names_alone():
    table = KeyTable(under("a.{}", "b_{}", same_names("c", [("weight", "kernel", DENSE)])))
    assert table.to_ours("a.12.c.weight")[0] == "b_12/c/kernel"
    assert table.to_torch("b_12/c/kernel")[0] == "a.12.c.weight"
    for key in (
        "a.x.c.weight",
        "a.1.c.weight.more",
        "xa.1.c.weight",
        "a.1.cxweight",
        "a..c.weight",
    ):
        assert table.to_ours(key) is None


def test_a_network_trained_here_has_one_name_for_each_parameter():
    module, params = loaded(RELEASE / "show-1-base/text_encoder")
    keys = torch_keys(Network(module, tables.T5))
    stored = find_weights(RELEASE / "show-1-base/text_encoder").tensors
    assert keys.keys() == stored.keys() - {"encoder.embed_tokens.weight"}
    assert len(keys) == len(flatten_dict(params))


# --- what does not fit --------------------------------------------------------


@pytest.fixture
def vae(tmp_path):
    """A network folder whose weights a test can change, and how to write them."""
    folder = network_copy(tmp_path / "vae", "show-1-sr2/vae")

    def write(tensors) -> str:
        write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors)
        return str(folder)

    return write, read_tensors(VAE_FOLDER)


def message(folder: str) -> str:
    with pytest.raises(InputError) as error:
        load_diffusers(folder)
    text = str(error.value)
    assert text.startswith(folder)
    assert "\n" not in text
    return text


def test_a_missing_tensor_is_named(vae):
    write, tensors = vae
    del tensors["encoder.conv_in.bias"]
    assert "missing: encoder.conv_in.bias" in message(write(tensors))


def test_an_unexpected_tensor_is_named(vae):
    write, tensors = vae
    tensors["novelty.weight"] = tensors["encoder.conv_in.bias"].clone()
    # In the table, but of a level that this network does not have.
    tensors["decoder.up_blocks.7.upsamplers.0.conv.bias"] = tensors["novelty.weight"].clone()
    text = message(write(tensors))
    assert "novelty.weight" in text
    assert "decoder.up_blocks.7.upsamplers.0.conv.bias" in text
    assert "missing" not in text


def test_a_wrong_shape_is_named(vae):
    write, tensors = vae
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"][:, :2].contiguous()
    text = message(write(tensors))
    assert "misshapen: encoder.conv_in.weight (16, 2, 3, 3) instead of (16, 3, 3, 3)" in text


def test_one_parameter_under_two_spellings_is_refused(vae):
    write, tensors = vae
    key = "encoder.mid_block.attentions.0.to_q.bias"
    tensors[key.replace("to_q", "query")] = tensors[key].clone()
    text = message(write(tensors))
    assert re.search(r"unexpected: \S+\.(to_q|query)\.bias beside \S+\.(to_q|query)\.bias$", text)


def test_integers_are_no_parameters(vae):
    write, tensors = vae
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"].int()
    assert "encoder.conv_in.bias of integers" in message(write(tensors))


def test_all_that_does_not_fit_is_listed_at_once(vae):
    write, tensors = vae
    for i in range(30):
        tensors[f"novelty.{i}"] = tensors["encoder.conv_in.bias"].clone()
    del tensors["encoder.conv_in.bias"]
    tensors["decoder.conv_in.bias"] = tensors["decoder.conv_in.bias"][:3].clone()
    text = message(write(tensors))
    assert re.search("missing: .*; unexpected: .* and 10 more; misshapen: ", text)


def test_tied_tensors_must_be_equal(tmp_path):
    folder = network_copy(tmp_path / "t5", "show-1-base/text_encoder")
    tensors = read_tensors(RELEASE / "show-1-base/text_encoder")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
    write_tensors(folder / "pytorch_model.bin", tensors)
    assert "encoder.embed_tokens.weight differs from the tensor" in message(str(folder))


def test_a_tied_tensor_may_be_stored_once(tmp_path):
    folder = network_copy(tmp_path / "t5", "show-1-base/text_encoder")
    tensors = read_tensors(RELEASE / "show-1-base/text_encoder")
    del tensors["shared.weight"]
    write_tensors(folder / "pytorch_model.bin", tensors)
    _, params = load_diffusers(folder)
    _, expected = loaded(RELEASE / "show-1-base/text_encoder")
    assert same_params(flatten_dict(params), flatten_dict(expected))


def test_a_buffer_must_hold_what_it_is_known_to_hold(tmp_path):
    folder = network_copy(tmp_path / "clip", "show-1-sr2/text_encoder")
    tensors = read_tensors(CLIP_FOLDER)
    key = "text_model.embeddings.position_ids"
    tensors[key] = tensors[key] + 1
    write_tensors(folder / "model.safetensors", tensors)
    assert key in message(str(folder))
    # Later files leave it out.
    del tensors[key]
    write_tensors(folder / "model.safetensors", tensors)
    _, params = load_diffusers(folder)
    assert same_params(flatten_dict(params), flatten_dict(loaded(CLIP_FOLDER)[1]))


def test_digests_tell_one_bit_dtypes_and_shapes_apart():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    changed = array.copy()
    changed.view(np.uint32)[1, 1] ^= 1
    others = [changed, array.astype(np.float16), array.view(np.int32), array.reshape(4, 3)]
    assert len({digest(each) for each in [array, *others]}) == 5
    assert digest(array.copy()) == digest(np.asfortranarray(array)) == digest(array)


@pytest.mark.parametrize("shape", [(), (5,), (700, 33), (3, 3, 300, 40), (2, 0), (1, 520, 17)])
def test_axes_are_moved_in_blocks(shape):
    array = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    moved = contiguous(array.T)
    assert moved.flags.c_contiguous
    np.testing.assert_array_equal(moved, array.T)


# --- dtypes -------------------------------------------------------------------


def test_load_diffusers_keeps_or_casts_dtypes():
    folder = RELEASE / "show-1-base/text_encoder"
    module, params = loaded(folder)
    assert module.dtype == jnp.float32
    flat = flatten_dict(params, sep="/")
    single = {path for path, value in flat.items() if value.dtype == np.float32}
    assert single == {path for path in flat if path.endswith("ff_out/kernel")}
    assert {v.dtype for v in flat.values()} == {np.dtype(np.float16), np.dtype(np.float32)}
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        module, params = load_diffusers(folder, dtype)
        assert module.dtype == jnp.float32
        for path, value in flatten_dict(params, sep="/").items():
            assert value.dtype == dtype
            np.testing.assert_array_equal(value, flat[path].astype(dtype))


def test_casts_refuse_to_overflow():
    large = np.array([1.0, 7e4], np.float32)
    with pytest.raises(
        InputError, match="here has values that are too large for float16; use bf16 or fp32"
    ):
        cast(large, np.dtype(np.float16), "here")
    assert np.isfinite(cast(large, np.dtype(jnp.bfloat16), "here").astype(np.float32)).all()
    assert cast(large, None, "here") is large
    # What was infinite before may stay so.
    infinite = np.array([np.inf, 1.0, np.nan], np.float32)
    assert np.isinf(cast(infinite, np.dtype(np.float16), "here")[0])


def test_networks_and_configurations_are_matched():
    module, _ = loaded(VAE_FOLDER)
    assert module.config == vae_config(
        {"_class_name": "AutoencoderKL", "block_out_channels": [16, 32, 32, 32],
         "norm_num_groups": 8, "down_block_types": ["DownEncoderBlock2D"] * 4,
         "up_block_types": ["UpDecoderBlock2D"] * 4}, "x",
    )  # fmt: skip
    with pytest.raises(InputError, match="does not match its config"):
        params_from_torch(Network(module, tables.VAE), find_weights(CLIP_FOLDER).tensors, "here")
