"""Softmax attention, by whichever implementation suits the platform and the lengths."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange

from show1_jax.errors import InputError
from show1_jax.parallel.mesh import target
from show1_jax.parallel.sharding import over_heads

Implementation = Literal["xla", "cudnn", "splash", "elementwise"]

# Logits of this many bytes at most exist at a time: a clip of 2,880 positions a
# frame would else need gigabytes of them. On CPUs, of sequences that are not short, so
# many that their caches hold them, which takes a third of the time.
LOGIT_BYTES = 2**29
CACHED_LOGIT_BYTES = 2**23

# Of fewer keys the logits are small, and XLA fuses around them.
LEAST_KEYS = 512
# Of fewer than the lanes of a TPU's registers, most of what lies in them would be padding;
# of CPUs' loops over them, most would be overhead.
FEW_KEYS = 32

LANES = 128  # lengths that the TPU's kernel takes are multiples of it
MOST_LANES = 6  # of a block: 768 by 768 logits, with their gradients, fit its fast memory


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention with fp32 logits (Vaswani et al. 2017, eq. 1).

    Args:
      query: `(batch, queries, heads, width)`.
      key: `(batch, keys, heads, width)`.
      value: `(batch, keys, heads, width)`.
      implementation: "xla" anywhere; "cudnn" (Dao et al. 2022) on NVIDIA GPUs since
        Ampere, in 16 bits; "splash", JAX's Pallas kernel, on TPUs, and slowly
        elsewhere; "elementwise" for short sequences on TPUs, whose matrix unit
        would mostly multiply padding; None for the best here.

    Returns:
      `(batch, queries, heads, width)` in the dtype of `query`.

    Raises:
      InputError: if there is no such implementation.
    """
    match implementation or best(query, key, *target()):
        case "xla":
            return _xla(query, key, value)
        case "cudnn":
            return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        case "splash":
            return over_heads(_splash, query, key, value)
        case "elementwise":
            return _elementwise(query, key, value)
        case unknown:
            raise InputError(f"attention {unknown!r} is not xla, cudnn, splash or elementwise")


def best(query: jax.Array, key: jax.Array, platform: str, capability: float) -> Implementation:
    """The implementation for these arrays on this platform.

    Short sequences, such as a clip's frames, are XLA's but on TPUs.
    """
    sixteen_bits = query.dtype in (jnp.bfloat16, jnp.float16)
    keys, width = key.shape[1], query.shape[-1]
    if platform == "tpu" and max(keys, query.shape[1]) <= FEW_KEYS:
        return "elementwise"
    if keys < LEAST_KEYS or not sixteen_bits:
        return "xla"
    if platform == "gpu" and capability >= 8 and width <= 128 and not width % 8:
        return "cudnn"
    if platform == "tpu" and width <= 2 * LANES:
        return "splash"
    return "xla"


def _xla(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    batch, queries, heads, _ = query.shape
    cached = target()[0] == "cpu" and key.shape[1] > FEW_KEYS
    most = CACHED_LOGIT_BYTES if cached else LOGIT_BYTES
    if 4 * batch * heads * queries * key.shape[1] <= most:
        return jax.nn.dot_product_attention(query, key, value)
    return over_heads(functools.partial(_in_pieces, most), query, key, value)


def _in_pieces(most: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Some heads at a time or, if one has more than `most` bytes of logits, some of its queries."""
    batch, queries, _, width = query.shape
    blocks = -(-4 * queries * key.shape[1] // most)
    block = -(-queries // blocks)
    rows = max(1, most // (4 * block * key.shape[1]))
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
    """All pairs of positions by sums over products, in which the batch can fill the lanes."""
    # Held in their own dtype: else XLA would move them about in fp32.
    held = jax.lax.optimization_barrier((query, key, value))
    wide = [x.astype(jnp.float32) for x in held]
    logits = (wide[0][:, :, None] * wide[1][:, None]).sum(-1) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=2)[..., None]
    return (weights * wide[2][:, None]).sum(2).astype(query.dtype)


def _splash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    # Pallas takes half a second to import, and only TPUs want it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, width, queries, keys = query.shape[2], query.shape[3], query.shape[1], key.shape[1]
    query = query * jnp.asarray(width**-0.5, query.dtype)
    q, kv = _block(queries), _block(keys)
    query, key, value = (_padded(x).swapaxes(1, 2) for x in (query, key, value))
    shape = (query.shape[2], key.shape[2])
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask(shape)] * heads),
        block_sizes=splash.BlockSizes(
            q, kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=target()[0] != "tpu",
    )
    ids = None
    if keys < shape[1]:  # the keys of the padding are another segment's, which no query sees
        ids = splash.SegmentIds(
            jnp.zeros(shape[0], jnp.int32), (jnp.arange(shape[1]) >= keys).astype(jnp.int32)
        )
    result = jax.vmap(functools.partial(kernel, segment_ids=ids))(query, key, value)
    return result.swapaxes(1, 2)[:, :queries].astype(query.dtype)


def _padded(x: jax.Array) -> jax.Array:
    """Zeros at the end of the length, up to a multiple of its block."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _block(x.shape[1])), (0, 0), (0, 0)))


def _block(length: int) -> int:
    """How much of a length is computed at a time, so that blocks are large and padding small."""
    lanes = -(-length // LANES)
    blocks = -(-lanes // MOST_LANES)
    return LANES * -(-lanes // blocks)
