"""Adapters as files: in PEFT's keys, several at once, and only for the network of their own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from show1_jax.adapters.customize import changes
from show1_jax.adapters.files import (
    Adapter,
    apply_adapters,
    base_fingerprint,
    load_adapter,
    parse_adapter,
    save_adapter,
)
from show1_jax.adapters.lora import new_lora
from show1_jax.checkpoints.torch_files import read_header, read_metadata
from show1_jax.checkpoints.torch_writer import write_file
from show1_jax.errors import InputError
from show1_jax.parallel import sharding
from show1_jax.training.trainable import split
from tests.training.small import assert_same, by_path, small_task


@pytest.fixture(scope="module")
def params():
    return small_task("keyframes")[1]


def lora(params, choice="temporal", rank=2, seed=0):
    """An adapter with random factors."""
    new = new_lora(params, choice, rank, jax.random.key(0))
    rng = np.random.default_rng(seed)
    filled = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), new)
    about = {"prompt": "a circle"}
    return Adapter(
        changes(new, filled), base_fingerprint(params), about=about, timesteps=(150, 1000)
    )


def whole(params, choice="temporal_attention"):
    """An adapter of differences."""
    chosen = split(params, choice)[0]
    return Adapter(
        changes(chosen, jax.tree.map(lambda leaf: leaf + 0.25, chosen)), base_fingerprint(params)
    )


def test_a_network_is_known_in_whatever_dtype_it_was_loaded(params):
    """Vectors stay in fp32."""

    def loaded(dtype):
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)

    found = {base_fingerprint(loaded(dtype)) for dtype in ("float32", "bfloat16", "float16")}
    assert found == {base_fingerprint(params)}
    flat = flatten_dict(params, sep="/")
    for path in ("conv_in/kernel", "conv_in/bias"):
        other = unflatten_dict(flat | {path: flat[path] - 0.1}, sep="/")
        assert base_fingerprint(other) not in found


def test_what_adapters_change_stays_in_the_order_that_gpus_want(params, monkeypatch):
    monkeypatch.setattr(sharding, "current_platform", lambda: ("gpu", 9.0))
    ordered = sharding.in_kernel_order(jax.tree.map(jnp.array, params))
    changed = apply_adapters(ordered, [(lora(params), 1.0)])
    for one, other in zip(jax.tree.leaves(changed), jax.tree.leaves(ordered), strict=True):
        assert one.format.layout.major_to_minor == other.format.layout.major_to_minor
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(ordered))


@pytest.mark.parametrize("make", [lora, whole])
def test_files_hold_all_of_an_adapter(params, tmp_path, make):
    adapter, path = make(params), tmp_path / "new" / "adapter.safetensors"
    save_adapter(path, adapter)
    found = load_adapter(path, params)
    assert (found.base, found.about, found.source) == (adapter.base, adapter.about, str(path))
    assert found.timesteps == adapter.timesteps
    assert found.changes.keys() == adapter.changes.keys()
    for name, change in adapter.changes.items():
        for one, other in zip(found.changes[name], change, strict=True):
            # Differences are kept in bf16.
            np.testing.assert_allclose(one, other, rtol=0 if make is lora else 2**-8)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_keys_and_shapes_are_those_of_peft(params, tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, lora(params))
    shapes = {key: stored.shape for key, stored in read_header(path).items()}
    query = "unet.mid_block.temp_attentions.0.transformer_blocks.0.attn1.to_q"
    assert shapes[f"{query}.lora_A.weight"] == (2, 32)
    assert shapes[f"{query}.lora_B.weight"] == (32, 2)
    convolution = "unet.mid_block.temp_convs.0.conv2.3"
    assert shapes[f"{convolution}.lora_A.weight"] == (2, 32, 3, 1, 1)
    assert shapes[f"{convolution}.lora_B.weight"] == (32, 2, 1, 1, 1)
    config = json.loads(read_metadata(path)["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"] == 2
    assert query.removeprefix("unet.") in config["unet.target_modules"]


def test_peft_files_are_read_with_their_alpha(params, tmp_path):
    path, module = tmp_path / "peft.safetensors", "mid_block.temp_attentions.0.proj_in"
    rng = np.random.default_rng(0)
    down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 32), (32, 4)))
    tensors = {
        f"base_model.model.{module}.lora_A.weight": down,
        f"base_model.model.{module}.lora_B.weight": up,
    }
    config = {"r": 4, "lora_alpha": 8}
    write_file(path, tensors.items())
    with pytest.raises(InputError, match="rank and alpha"):
        load_adapter(path, params)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InputError, match="use_dora"):
        load_adapter(path, params)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = by_path(apply_adapters(params, [(load_adapter(path, params), 1.0)]))
    kernel = "mid/temporal_attention_0/proj_in/kernel"
    expected = by_path(params)[kernel] + 2 * (up @ down).T
    np.testing.assert_allclose(found[kernel], expected, rtol=1e-5, atol=1e-5)


def test_weights_scale_and_several_add_up(params):
    one, other = lora(params, seed=1), whole(params)
    found = by_path(apply_adapters(params, [(one, 0.5), (other, 2.0)]))
    for path, leaf in by_path(params).items():
        expected = np.asarray(leaf)
        if path in one.changes:
            expected = expected + 0.5 * (one.changes[path][0] @ one.changes[path][1])
        if path in other.changes:
            expected = expected + 0.5
        if path in one.changes.keys() | other.changes.keys():
            np.testing.assert_allclose(found[path], expected, atol=1e-5)
        else:
            np.testing.assert_array_equal(found[path], expected)
    assert_same(apply_adapters(params, [(one, 0.0)]), params)


def test_adapters_of_another_network_are_refused(params, tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, lora(params))
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    with pytest.raises(InputError, match="made for another checkpoint"):
        apply_adapters(other, [(load_adapter(path, other), 1.0)])
    wider = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], 7), leaf.dtype), params
    )
    with pytest.raises(InputError, match="not for this network"):
        load_adapter(path, wider)


HALF = "unet.mid_block.temp_attentions.0.proj_in.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "truncated"),
        (lambda path: path.write_bytes(b"no adapter"), "not a safetensors file, or is damaged"),
        (lambda path: path.unlink(), "there is no adapter"),
        (lambda path: write_file(path, []), "changes nothing"),
        (lambda path: write_file(path, [(HALF, np.ones((2, 32), np.float32))]), "only half"),
        (lambda path: write_file(path, [("a.diff", np.ones(2, np.float32))]), "no adapter of"),
        (lambda path: write_file(path, [(HALF, np.float32([np.nan]))]), "no change of"),
        (
            lambda path: write_file(path, [(HALF, np.full((2, 32), np.nan, np.float32))]),
            "not finite",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-2] + b"!!"), "is damaged"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"[150, 1", b"[150; 1")),
            "not the first and one past the last",
        ),
        (
            lambda path: path.write_bytes(
                path.read_bytes().replace(b"[150, 1000]", b"[150, 0100]")
            ),
            "not the first and one past the last",
        ),
    ],
)
def test_files_that_are_no_adapter_are_refused(params, tmp_path, spoil, message):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, lora(params))
    spoil(path)
    with pytest.raises(InputError, match=message):
        load_adapter(path, params)


def test_weights_are_parsed(tmp_path):
    assert parse_adapter("a.safetensors") == (tmp_path.__class__("a.safetensors"), 1.0)
    assert parse_adapter("a=b.safetensors=-0.5")[1] == -0.5
    for wrong in ("a.safetensors=much", "a.safetensors=nan"):
        with pytest.raises(InputError, match="is not a weight"):
            parse_adapter(wrong)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"lora_adapter_metadata": "[" * 100_000}, "lora_adapter_metadata cannot be read"),
        ({"lora_adapter_metadata": '{"r": 2, "lora_alpha": Infinity}'}, "not possible"),
        ({"lora_adapter_metadata": '{"r": NaN}'}, "not possible"),
        ({"lora_adapter_metadata": f'{{"r": 1{"0" * 400}}}'}, "not possible"),
        ({"lora_adapter_metadata": '{"r": true}'}, "not possible"),
        ({"timesteps": f"[0, {'9' * 5000}]"}, "not the first and one past the last"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_metadata_that_no_adapter_has_is_refused(params, tmp_path, metadata, message):
    path, factor = tmp_path / "adapter.safetensors", np.ones((2, 32), np.float32)
    tensors = [(HALF, factor), (HALF.replace("lora_A", "lora_B"), factor.T)]
    write_file(path, tensors, metadata)
    with pytest.raises(InputError, match=message):
        load_adapter(path, params)


def test_changes_beyond_fp32_are_refused(params, tmp_path):
    path, factor = tmp_path / "adapter.safetensors", np.full((2, 32), 3e38, np.float32)
    write_file(path, [(HALF, factor), (HALF.replace("lora_A", "lora_B"), factor.T)])
    with pytest.raises(InputError, match="is beyond fp32"):
        load_adapter(path, params)


def test_an_adapter_of_a_config_is_a_text():
    with pytest.raises(InputError, match="not 5"):
        parse_adapter(5)
