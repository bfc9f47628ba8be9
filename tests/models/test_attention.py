"""Attention: what it computes, and that every implementation computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from show1_jax.errors import InputError
from show1_jax.models.ops import attention as ops
from show1_jax.models.ops.attention import attention, best_implementation
from show1_jax.parallel.mesh import AXES
from tests.conftest import assert_close


def attention_inputs(batch, queries=6, keys=9):
    rng = np.random.default_rng(0)
    lengths = (queries, keys, keys)
    return [rng.standard_normal((batch, length, 2, 4), np.float32) for length in lengths]


def gradients(*inputs, **how):
    """Of a function of the attention, by each of its inputs."""

    def loss(*inputs):
        return jnp.sin(attention(*inputs, **how)).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)


def test_attention_is_a_softmax_over_keys():
    query, key, value = attention_inputs(2)
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value)
    assert_close(attention(query, key, value), expected, 1e-6)


@pytest.mark.parametrize("logits", [9, 4 * 9, 6 * 9, 3 * 6 * 9])
def test_chunked_attention_is_the_same(logits, monkeypatch):
    inputs = attention_inputs(5)

    def loops() -> bool:
        # A new function each time, for a trace of its own.
        return "scan" in str(jax.make_jaxpr(lambda *inputs: attention(*inputs))(*inputs))

    assert not loops()
    whole, whole_gradient = attention(*inputs), gradients(*inputs)
    # Room for one of six queries, for four, for one of ten heads, for three.
    monkeypatch.setattr(ops, "MAX_CACHED_LOGIT_BYTES", 4 * logits)
    assert not loops()  # over so few keys
    monkeypatch.setattr(ops, "MAX_SHORT_LENGTH", 8)
    assert loops()
    half = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    assert attention(*half).dtype == jnp.bfloat16
    assert_close(attention(*half).astype(jnp.float32), whole, 2e-2)
    assert_close(attention(*inputs), whole, 1e-6)
    for chunked, expected in zip(gradients(*inputs), whole_gradient, strict=True):
        assert_close(chunked, expected, 1e-6)


def test_attention_keeps_the_dtype_of_its_query():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in attention_inputs(2))
    out = attention(query, key, value)
    assert out.dtype == jnp.bfloat16
    exact = attention(*(x.astype(jnp.float32) for x in (query, key, value)))
    assert_close(out, exact, 2e-2)


@pytest.mark.parametrize(
    ("queries", "keys"), [(6, 9), (128, 256), (130, 300), (256, 77), (640, 717)]
)
def test_splash_is_the_same_at_any_length(queries, keys):
    inputs = attention_inputs(2, queries, keys)
    assert_close(
        attention(*inputs, implementation="splash"), attention(*inputs, implementation="xla"), 1e-6
    )
    if queries == 130:
        pairs = zip(
            gradients(*inputs, implementation="splash"),
            gradients(*inputs, implementation="xla"),
            strict=True,
        )
        for found, expected in pairs:
            assert_close(found, expected, 1e-5)


def test_elementwise_is_the_same():
    inputs = attention_inputs(2)
    expected = attention(*inputs, implementation="xla")
    assert_close(attention(*inputs, implementation="elementwise"), expected, 1e-6)
    pairs = (gradients(*inputs, implementation=name) for name in ("elementwise", "xla"))
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(6, 8), (6, 9), (7, 9), (5, 8)])
def test_rows_that_make_lengths_even_are_not_seen(queries, keys):
    inputs, lengths = attention_inputs(3, queries, keys), set()

    def attend(query, key, value, **masked):
        lengths.update((query.shape[1], key.shape[1], value.shape[1]))
        return jax.nn.dot_product_attention(query, key, value, implementation="xla", **masked)

    def padded(*inputs):
        return ops.of_even_lengths(attend, *inputs)

    assert_close(padded(*inputs), attention(*inputs), 1e-6)
    found = jax.grad(lambda *x: jnp.sin(padded(*x)).sum(), argnums=(0, 1, 2))(*inputs)
    for one, other in zip(found, gradients(*inputs), strict=True):
        assert_close(one, other, 1e-5)
    assert all(length % 2 == 0 for length in lengths)


def test_only_gradients_make_cudnn_pad(monkeypatch):
    inputs, lengths = attention_inputs(3, 7, 9), []
    attend = jax.nn.dot_product_attention

    def on_this_machine(query, key, value, implementation=None, **masked):
        if implementation == "cudnn":
            lengths.append((query.shape[1], key.shape[1]))
        return attend(query, key, value, **masked)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_this_machine)
    assert_close(attention(*inputs, implementation="cudnn"), attention(*inputs), 1e-6)
    assert lengths == [(7, 9)]
    pairs = (gradients(*inputs, implementation=name) for name in ("cudnn", "xla"))
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, 1e-5)
    assert lengths[1:] == [(8, 10)]


def assert_like_xla(implementation, queries, keys, dtype):
    """Compares an implementation in `dtype` with XLA's in float32, and its gradients."""
    rng = np.random.default_rng(0)
    shapes = [(2, length, 4, 64) for length in (queries, keys, keys)]
    inputs = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    exact = [x.astype(jnp.float32) for x in inputs]
    found = attention(*inputs, implementation=implementation)
    assert found.dtype == dtype
    assert_close(found.astype(jnp.float32), attention(*exact, implementation="xla"), 2e-2)
    pairs = (gradients(*inputs, implementation=implementation), gradients(*exact))
    for one, other in zip(*pairs, strict=True):
        assert_close(one.astype(jnp.float32), other, 5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("queries", "keys"), [(7, 7), (29, 29), (8, 8), (640, 717), (2880, 2880), (2880, 77)]
)
def test_cudnn_is_the_same(queries, keys, dtype):
    assert_like_xla("cudnn", queries, keys, dtype)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (8, 8)])
def test_sixteen_bits_are_close_to_xla_in_float32(queries, keys):
    assert_like_xla("elementwise", queries, keys, jnp.bfloat16)


@pytest.mark.parametrize(
    ("platform", "capability", "keys", "width", "dtype", "expected"),
    [
        ("cpu", 0, 2880, 64, jnp.bfloat16, "xla"),
        ("tpu", 0, 2880, 64, jnp.bfloat16, "splash"),
        ("tpu", 0, 717, 64, jnp.bfloat16, "splash"),
        ("tpu", 0, 8, 64, jnp.bfloat16, "elementwise"),  # a clip's frames
        ("cpu", 0, 8, 64, jnp.bfloat16, "xla"),
        ("tpu", 0, 2880, 512, jnp.bfloat16, "xla"),  # the autoencoder's single head
        ("tpu", 0, 2880, 64, jnp.float32, "xla"),
        ("gpu", 9.0, 2880, 64, jnp.bfloat16, "cudnn"),
        ("gpu", 9.0, 8, 64, jnp.bfloat16, "cudnn"),  # a clip's frames
        ("gpu", 7.5, 2880, 64, jnp.bfloat16, "xla"),
        ("gpu", 9.0, 2880, 512, jnp.bfloat16, "xla"),
        ("gpu", 9.0, 2880, 60, jnp.bfloat16, "xla"),
        ("gpu", 9.0, 2880, 64, jnp.float32, "xla"),
    ],
)
def test_best_implementation_depends_on_platform_and_length(
    platform, capability, keys, width, dtype, expected
):
    query = key = jax.ShapeDtypeStruct((1, keys, 4, width), dtype)
    assert best_implementation(query, key, platform, capability) == expected


def test_a_batch_that_is_too_large_for_cudnn_is_left_to_xla():
    """What counts is the share of a device."""
    for devices, batch, expected in (
        (1, 65535, "cudnn"),
        (1, 65536, "xla"),
        (2, 2 * 65535, "cudnn"),
        (2, 2 * 65536, "xla"),
    ):
        query = jax.ShapeDtypeStruct((batch, 8, 4, 64), jnp.bfloat16)
        with jax.sharding.use_abstract_mesh(AbstractMesh((devices, 1, 1, 1), AXES)):
            assert best_implementation(query, query, "gpu", 9.0) == expected


def test_unknown_implementations_are_refused():
    with pytest.raises(InputError, match="flash"):
        attention(*attention_inputs(1), implementation="flash")


def test_blocks_are_large_and_padding_is_small():
    for length, block, padded in (
        (8, 128, 128),
        (640, 640, 640),
        (717, 768, 768),
        (2880, 768, 3072),
    ):
        assert ops._block_length(length) == block
        assert ops._pad_to_blocks(jnp.zeros((1, length, 1, 1))).shape[1] == padded
