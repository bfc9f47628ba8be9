"""Runs the text encoders: from prompts to the embeddings that denoisers attend to."""

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from show1_jax.checkpoints.released import StageFolder
from show1_jax.checkpoints.store import StoredParams
from show1_jax.errors import LESS_MEMORY_NETWORK, InputError, out_of_memory_as_error
from show1_jax.memory import reuse_freed_memory
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import Block, T5Encoder, attention_bias
from show1_jax.parallel.mesh import concrete_mesh, current_platform
from show1_jax.parallel.sharding import put_batch
from show1_jax.text.tokenizers import LENGTH, Tokenizer, Tokens, tokenizer

MAX_BYTES_ON_CPU = 2**30  # of a stored T5 that is kept whole


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its parameters and its tokenizer.

    Attributes:
      module: the network.
      params: its parameters, or `StoredParams` to read layer by layer at each call.
      tokenize: converts texts to tokens.
    """

    module: T5Encoder | CLIPText
    params: Any
    tokenize: Tokenizer

    def __call__(
        self,
        prompts: Sequence[str],
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Encodes cleaned prompts.

        Args:
          prompts: the texts.
          batch_size: number of prompts that are encoded together; None for all.
          progress: called with the number of finished units of work, and the number of all.

        Returns:
          fp32 `(len(prompts), length, width)`.

        Raises:
          InputError: if memory is short, or parameters that are read now are damaged.
        """
        size = batch_size or len(prompts)
        # The last batch is filled up, so that all batches run the same program.
        filled = [*prompts, *[""] * (-len(prompts) % size)]
        batches = [self.tokenize(filled[i : i + size]) for i in range(0, len(filled), size)]
        with out_of_memory_as_error("the text encoder", LESS_MEMORY_NETWORK):
            if isinstance(self.module, T5Encoder) and isinstance(self.params, StoredParams):
                with _checked_meanwhile(self.params):
                    rows = encode_by_layer(self.module, self.params.read, batches, progress)
            else:
                function: Any = encode_t5 if isinstance(self.module, T5Encoder) else encode_clip
                rows = []
                for tokens in batches:
                    own = put_batch(tokens)  # each device encodes its share
                    rows.append(np.asarray(function(self.module, self.params, own)))
                    if progress is not None:
                        progress(len(rows), len(batches))
            return np.concatenate(rows)[: len(prompts)]


def load_encoder(
    folder: StageFolder, dtype: DTypeLike, tokens: int = LENGTH, whole: bool = False
) -> TextEncoder:
    """Loads the text encoder of a stage's folder.

    T5 is read layer by layer at each call, because the released one takes more memory than all
    denoisers.

    Reads the platform of the mesh set by `jax.set_mesh`.

    Args:
      folder: of the stage.
      dtype: compute dtype; see `t5_dtype`.
      tokens: number of tokens per prompt.
      whole: whether T5 is kept in memory for many calls. On CPUs it is only below
        `MAX_BYTES_ON_CPU`: their memory is that of everything else.

    Raises:
      InputError: if the encoder or its tokenizer is missing or damaged, or memory is short. Of a
        T5 that is read at each call, damaged numbers are found then.
    """
    module, dtype = encoder_module(folder, dtype)
    tokenize = load_tokenizer(folder, module, tokens)
    with out_of_memory_as_error("the text encoder", LESS_MEMORY_NETWORK):
        room = current_platform()[0] != "cpu" or folder.size("text_encoder") <= MAX_BYTES_ON_CPU
        keep = isinstance(module, CLIPText) or (whole and room)
        # What is read at each call is checked then.
        stored = folder.stored("text_encoder", module, dtype, check=keep)
        return TextEncoder(module, stored.read() if keep else stored, tokenize)


def encoder_module(folder: StageFolder, dtype: DTypeLike) -> tuple[T5Encoder | CLIPText, np.dtype]:
    """The text encoder of a stage's folder, without its parameters.

    Args:
      folder: of the stage.
      dtype: what the other networks compute in.

    Returns:
      The encoder, and the dtype that it computes in; see `t5_dtype`.

    Raises:
      InputError: if the encoder is missing.
    """
    module = folder.module("text_encoder", dtype)
    assert isinstance(module, T5Encoder | CLIPText)
    own = t5_dtype(dtype) if isinstance(module, T5Encoder) else np.dtype(dtype)
    return module.clone(dtype=own), own


def load_tokenizer(folder: StageFolder, module: T5Encoder | CLIPText, tokens: int) -> Tokenizer:
    """The tokenizer beside a text encoder.

    Args:
      folder: of the stage.
      module: the text encoder.
      tokens: number of tokens per prompt.

    Raises:
      InputError: if it is missing or damaged.
    """
    encoder = "t5" if isinstance(module, T5Encoder) else "clip"
    return tokenizer(encoder, folder.folder / "tokenizer", tokens)


@contextlib.contextmanager
def _checked_meanwhile(stored: StoredParams) -> Iterator[None]:
    """Checks files while they are used, since to read them twice takes twice as long.

    Raises:
      InputError: at the end, if one is damaged.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        checking = pool.submit(stored.check)
        try:
            yield
        except InputError:
            checking.result()  # says which file it is
            raise
        checking.result()


def t5_dtype(dtype: DTypeLike) -> np.dtype:
    """Returns what T5 computes in where the other networks compute in `dtype`.

    It overflows in float16, and computes in bfloat16 then.
    """
    return np.dtype(jnp.bfloat16 if jnp.dtype(dtype) == jnp.float16 else dtype)


def encode_by_layer(
    module: T5Encoder,
    read: Callable[[Collection[str]], Any],
    batches: Sequence[Tokens],
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Encodes tokens with T5, while the next layer is read: two of them are in memory.

    Args:
      module: the encoder.
      read: reads the parameters with the given names at the top level of the tree. It is called
        in another thread, under the same mesh.
      batches: tokens of one shape. All batches pass a layer before the next layer is read.
      progress: called with the number of finished layers, and the number of all layers.

    Returns:
      For each batch, what `encode_t5` returns.

    Raises:
      InputError: if the module computes in float16, or parameters are damaged.
    """
    block, layers = Block(module.config, module.dtype), module.config.num_layers
    blocks = [(f"block_{i}",) for i in range(layers)]
    names = [("token_embedding", "relative_bias"), *blocks, ("final_norm",)]
    with reuse_freed_memory(), contextlib.closing(_read_ahead(read, names)) as parts:
        params = next(parts)
        position = position_bias(module, params, batches[0].input_ids.shape[1])
        states = [np.asarray(embed_tokens(module, params, tokens.input_ids)) for tokens in batches]
        for i in range(layers):
            if progress is not None:
                progress(i, layers)
            del params
            params = next(parts)
            (own,) = params.values()
            states = [
                np.asarray(run_layer(block, own, state, position, tokens.attention_mask))
                for state, tokens in zip(states, batches, strict=True)
            ]
            del own
        del params
        params = next(parts)
        states = [np.asarray(_finish(module, params, state)) for state in states]
    if progress is not None:
        progress(layers, layers)
    return states


def _read_ahead(
    read: Callable[[Collection[str]], Any], names: Sequence[Collection[str]]
) -> Generator[Any]:
    """Yields what is read under each of the names, while the next is being read."""
    mesh = concrete_mesh()

    def under_mesh(wanted: Collection[str]) -> Any:
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            return read(wanted)

    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        reading = reader.submit(under_mesh, names[0])
        for following in names[1:]:
            found = reading.result()
            reading = reader.submit(under_mesh, following)
            yield found
            del found
        yield reading.result()


@functools.partial(jax.jit, static_argnums=(0, 2))
def position_bias(module: T5Encoder, params: Any, length: int) -> jax.Array:
    """Computes what relative positions add to the logits of all layers."""
    return jnp.asarray(module.apply({"params": params}, length, method="position_bias"))


@functools.partial(jax.jit, static_argnums=0)
def embed_tokens(module: T5Encoder, params: Any, input_ids: np.ndarray) -> jax.Array:
    """Looks up the embeddings of int tokens `(batch, length)`: `(batch, length, d_model)`."""
    return jnp.asarray(module.apply({"params": params}, input_ids, method="embed"))


@functools.partial(jax.jit, static_argnums=0)
def run_layer(
    block: Block, params: Any, state: np.ndarray, position: jax.Array, mask: np.ndarray
) -> jax.Array:
    """Runs one layer of T5.

    Args:
      block: the layer.
      params: its parameters.
      state: `(batch, length, d_model)`.
      position: of `position_bias`.
      mask: `(batch, length)`; 0 at padding.

    Returns:
      Like `state`.
    """
    bias = attention_bias(position, jnp.asarray(mask))
    return jnp.asarray(block.apply({"params": params}, state, bias))


@functools.partial(jax.jit, static_argnums=0)
def _finish(module: T5Encoder, params: Any, state: np.ndarray) -> jax.Array:
    return jnp.asarray(module.apply({"params": params}, state, method="finish"), jnp.float32)


def encode_t5(module: T5Encoder, params: Any, tokens: Tokens) -> jax.Array:
    """Encodes tokens with T5, which does not attend to padding.

    Returns:
      fp32 `(batch, length, d_model)`. Padding has embeddings too, because denoisers attend to
      all positions.

    Raises:
      InputError: if the module computes in float16.
    """
    return encode(module, params, tokens.input_ids, tokens.attention_mask)


def encode_clip(module: CLIPText, params: Any, tokens: Tokens) -> jax.Array:
    """Encodes tokens with CLIP.

    CLIP attends to padding, like the released cascade, unless `use_attention_mask` is set in its
    config.

    Returns:
      fp32 `(batch, length, width)`.

    Raises:
      InputError: if there are more tokens than the encoder has positions.
    """
    mask = tokens.attention_mask if module.config.use_attention_mask else None
    return encode(module, params, tokens.input_ids, mask)


def encode_packed(module: T5Encoder | CLIPText, params: Any, packed: Any) -> jax.Array:
    """Encodes tokens as a cache of embeddings keeps them.

    Args:
      module: the text encoder.
      params: its parameters.
      packed: int `(batch, 2, length)`, the tokens and their mask.

    Returns:
      fp32 `(batch, length, width)`, rounded to float16.

    Raises:
      InputError: as of `encode_t5` and `encode_clip`.
    """
    function: Any = encode_t5 if isinstance(module, T5Encoder) else encode_clip
    embeddings = function(module, params, Tokens(packed[:, 0], packed[:, 1]))
    # Without the barrier XLA leaves out the rounding on GPUs.
    return jax.lax.optimization_barrier(embeddings.astype(jnp.float16)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def encode(
    module: T5Encoder | CLIPText, params: Any, input_ids: np.ndarray, mask: np.ndarray | None
) -> jax.Array:
    """Encodes int tokens `(batch, length)` to fp32 `(batch, length, width)`."""
    return jnp.asarray(module.apply({"params": params}, input_ids, mask), jnp.float32)
