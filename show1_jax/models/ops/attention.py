"""Softmax attention, with the fastest implementation for the platform and the lengths.

Reads the mesh set by `jax.set_mesh`: its platform (`parallel.mesh.current_platform`) and its
axes (`parallel.sharding.shard_map_heads`).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange

from show1_jax.errors import InputError
from show1_jax.parallel.mesh import current_platform
from show1_jax.parallel.sharding import clips_of_device, shard_map_heads

Implementation = Literal["xla", "cudnn", "splash", "elementwise"]

# Maximum size of the logits that exist at once. Without it, a clip with 2,880 positions per frame
# needs gigabytes. On CPUs, logits that fit the caches take a third of the time, unless there
# are at most `MAX_SHORT_LENGTH` keys.
MAX_LOGIT_BYTES = 2**29
MAX_CACHED_LOGIT_BYTES = 2**23

# With fewer keys the logits are small, and XLA for TPUs fuses the layers around them. XLA for GPUs
# pads, transposes and writes them.
MIN_SPLASH_KEYS = 512
MAX_CUDNN_BATCH = 65535  # cuDNN fails beyond (github.com/pytorch/pytorch/pull/181235)
# Sequences up to this length fill less than the 128 lanes of a TPU's registers, so that most of
# them would hold padding. On CPUs a loop over such sequences would be mostly overhead.
MAX_SHORT_LENGTH = 32

LANES = 128  # the TPU kernel takes lengths that are multiples of it
# Lanes per block. Logits of 768 by 768 and their gradients fit a TPU's fast memory.
MAX_BLOCK_LANES = 6


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention with fp32 logits (Vaswani et al. 2017, eq. 1).

    Reads the mesh set by `jax.set_mesh`: for its platform, and to run kernels that the compiler
    cannot split on each device's share.

    Args:
      query: `(batch, queries, heads, width)`.
      key: `(batch, keys, heads, width)`.
      value: `(batch, keys, heads, width)`.
      implementation: None for `best_implementation`, or one of
        "xla": runs everywhere.
        "cudnn": flash attention (Dao et al. 2022), for 16-bit arrays on NVIDIA GPUs since Ampere.
        "splash": JAX's Pallas kernel for TPUs. Runs elsewhere too, but slowly.
        "elementwise": for short sequences on TPUs, where a matrix product would mostly multiply
        padding.

    Returns:
      `(batch, queries, heads, width)` in the dtype of `query`.

    Raises:
      InputError: if `implementation` is unknown.
    """
    match implementation or best_implementation(query, key, *current_platform()):
        case "xla":
            return _xla(query, key, value)
        case "cudnn":
            return _cudnn(query, key, value)
        case "splash":
            return shard_map_heads(_splash, query, key, value)
        case "elementwise":
            return _elementwise(query, key, value)
        case unknown:
            raise InputError(f"attention {unknown!r} is not xla, cudnn, splash or elementwise")


def keep_separate(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the arrays such that products of the same one stay separate on GPUs.

    XLA for GPUs merges queries, keys and values into one product. cuDNN takes three arrays, so the
    result would be copied part by part.

    Reads the platform of the mesh set by `jax.set_mesh`.
    """
    return jax.lax.optimization_barrier(arrays) if current_platform()[0] == "gpu" else arrays


def best_implementation(
    query: jax.Array, key: jax.Array, platform: str, capability: float
) -> Implementation:
    """Chooses the fastest implementation.

    Args:
      query: `(batch, queries, heads, width)`, or its shape and dtype.
      key: `(batch, keys, heads, width)`, or its shape and dtype.
      platform: "cpu", "gpu" or "tpu".
      capability: a GPU's compute capability.
    """
    sixteen_bits = query.dtype in (jnp.bfloat16, jnp.float16)
    batch, keys, width = clips_of_device(len(query)), key.shape[1], query.shape[-1]
    if platform == "gpu" and capability >= 8 and sixteen_bits:
        fits = width <= 128 and not width % 8 and batch <= MAX_CUDNN_BATCH
        return "cudnn" if fits else "xla"
    if platform == "tpu" and max(keys, query.shape[1]) <= MAX_SHORT_LENGTH:
        return "elementwise"
    if platform == "tpu" and keys >= MIN_SPLASH_KEYS and sixteen_bits and width <= 2 * LANES:
        return "splash"
    return "xla"


@jax.custom_vjp
def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """cuDNN's flash attention; only where there are gradients to come, lengths are made even."""
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _cudnn_forward(*arrays: jax.Array) -> tuple[jax.Array, Callable[..., Any]]:
    kernel = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return jax.vjp(functools.partial(of_even_lengths, kernel), *arrays)


def _cudnn_backward(pull_back: Callable[..., Any], gradient: jax.Array) -> Any:
    return pull_back(gradient)


_cudnn.defvjp(_cudnn_forward, _cudnn_backward)


def of_even_lengths(
    attend: Callable[..., jax.Array], query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
    """Pads odd lengths by a row that is masked: cuDNN has gradients of even lengths alone.

    Args:
      attend: takes the arguments of `jax.nn.dot_product_attention`.
      query: `(batch, queries, heads, width)`.
      key: `(batch, keys, heads, width)`.
      value: likewise.

    Returns:
      `(batch, queries, heads, width)`.
    """
    queries, keys = query.shape[1], key.shape[1]
    if not queries % 2 and not keys % 2:
        return attend(query, key, value)
    padded = [
        jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value)
    ]
    # Made from `query`, since JAX's rule for `vmap` wants lengths mapped where arrays are.
    none = query[:, 0, 0, 0].astype(jnp.int32) * 0
    lengths = {"query_seq_lengths": none + queries, "key_value_seq_lengths": none + keys}
    return attend(*padded, **lengths)[:, :queries]


def _xla(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """XLA's attention, in chunks if the logits would be too large."""
    batch, queries, heads, _ = query.shape
    cached = current_platform()[0] == "cpu" and key.shape[1] > MAX_SHORT_LENGTH
    max_bytes = MAX_CACHED_LOGIT_BYTES if cached else MAX_LOGIT_BYTES
    if 4 * batch * heads * queries * key.shape[1] <= max_bytes:
        return jax.nn.dot_product_attention(query, key, value)
    return shard_map_heads(functools.partial(_chunked, max_bytes), query, key, value)


def _chunked(max_bytes: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Loops over heads, or over blocks of queries if the logits of a head exceed `max_bytes`."""
    batch, queries, _, width = query.shape
    blocks = -(-4 * queries * key.shape[1] // max_bytes)
    block = -(-queries // blocks)
    rows = max(1, max_bytes // (4 * block * key.shape[1]))
    padded = jnp.pad(query, ((0, 0), (0, blocks * block - queries), (0, 0), (0, 0)))
    by_block = rearrange(padded, "b (n q) h d -> (b h) n q d", n=blocks)
    key, value = (rearrange(x, "b k h d -> (b h) k d") for x in (key, value))

    def head(arrays: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        blocks, key, value = arrays

        def part(query: jax.Array) -> jax.Array:
            logits = jnp.matmul(query, key.T, preferred_element_type=jnp.float32) * width**-0.5
            largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
            weights = jnp.exp(logits - largest)
            total = weights.sum(axis=-1, keepdims=True)
            product = jnp.matmul(
                weights.astype(value.dtype), value, preferred_element_type=jnp.float32
            )
            return (product / total).astype(query.dtype)

        return jax.lax.map(part, blocks)

    made = jax.lax.map(head, (by_block, key, value), batch_size=rows)
    return rearrange(made, "(b h) n q d -> b (n q) h d", b=batch)[:, :queries]


def _elementwise(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Sums over elementwise products of all pairs, so that the batch fills the lanes."""
    # Without the barrier XLA would convert to fp32 first, and move twice the bytes.
    held = jax.lax.optimization_barrier((query, key, value))
    wide = [x.astype(jnp.float32) for x in held]
    logits = (wide[0][:, :, None] * wide[1][:, None]).sum(-1) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=2)[..., None]
    return (weights * wide[2][:, None]).sum(2).astype(query.dtype)


def _splash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """JAX's Pallas kernel, with lengths padded to whole blocks."""
    # Imported here because it takes half a second, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, width, queries, keys = query.shape[2], query.shape[3], query.shape[1], key.shape[1]
    query = query * jnp.asarray(width**-0.5, query.dtype)
    q, kv = _block_length(queries), _block_length(keys)
    query, key, value = (_pad_to_blocks(x).swapaxes(1, 2) for x in (query, key, value))
    shape = (query.shape[2], key.shape[2])
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask(shape)] * heads),
        block_sizes=splash.BlockSizes(
            q, kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=current_platform()[0] != "tpu",
    )
    ids = None
    if keys < shape[1]:  # padding keys get another segment, so that no query attends to them
        ids = splash.SegmentIds(
            jnp.zeros(shape[0], jnp.int32), (jnp.arange(shape[1]) >= keys).astype(jnp.int32)
        )
    result = jax.vmap(functools.partial(kernel, segment_ids=ids))(query, key, value)
    return result.swapaxes(1, 2)[:, :queries].astype(query.dtype)


def _pad_to_blocks(x: jax.Array) -> jax.Array:
    """Appends zeros until the length is a multiple of `_block_length`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _block_length(x.shape[1])), (0, 0), (0, 0)))


def _block_length(length: int) -> int:
    """Chooses the length of blocks such that they are large and padding is small."""
    lanes = -(-length // LANES)
    blocks = -(-lanes // MAX_BLOCK_LANES)
    return LANES * -(-lanes // blocks)
