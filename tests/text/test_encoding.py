"""Prompts to embeddings: tokenizer and encoder together, as the release was recorded."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder
from show1_jax.text.encoding import encode_clip, encode_t5
from show1_jax.text.tokenizers import clip_tokenizer, t5_tokenizer
from tests.conftest import RELEASE, assert_close, loaded

PROMPTS = json.loads((RELEASE / "expected_text_prompts.json").read_text())
T5 = RELEASE / "show-1-base"
CLIP = RELEASE / "show-1-sr2"


@pytest.fixture(scope="module")
def expected():
    return load_file(RELEASE / "expected_text.safetensors")


@pytest.fixture(scope="module")
def t5():
    module, params = loaded(T5 / "text_encoder")
    return module.config, params


@pytest.fixture(scope="module")
def clip():
    module, params = loaded(CLIP / "text_encoder")
    return module.config, params


def test_t5_embeddings_of_the_release(t5, expected):
    config, params = t5
    tokens = t5_tokenizer(T5 / "tokenizer")(PROMPTS)
    out = encode_t5(T5Encoder(config), params, tokens)
    assert out.dtype == jnp.float32
    assert_close(out, expected["t5.embeddings"], 2e-5)


def test_clip_embeddings_of_the_release(clip, expected):
    config, params = clip
    tokens = clip_tokenizer(CLIP / "tokenizer")(PROMPTS)
    out = encode_clip(CLIPText(config), params, tokens)
    assert out.dtype == jnp.float32
    assert_close(out, expected["clip.embeddings"], 2e-5)


def test_clip_hides_padding_only_where_its_config_says_so(clip, expected):
    config, params = clip
    tokens = clip_tokenizer(CLIP / "tokenizer")(PROMPTS)
    masked = dataclasses.replace(config, use_attention_mask=True)
    out = np.asarray(encode_clip(CLIPText(masked), params, tokens))
    used = tokens.attention_mask.astype(bool)
    assert_close(out[used], expected["clip.embeddings"][used], 2e-5)
    assert np.abs(out - expected["clip.embeddings"]).max() > 1e-2


def test_bfloat16_embeddings_are_float32_and_close(t5, clip, expected):
    tokens = t5_tokenizer(T5 / "tokenizer")(PROMPTS)
    out = encode_t5(T5Encoder(t5[0], dtype=jnp.bfloat16), t5[1], tokens)
    assert out.dtype == jnp.float32
    assert_close(out, expected["t5.embeddings"], 5e-2)
    tokens = clip_tokenizer(CLIP / "tokenizer")(PROMPTS)
    out = encode_clip(CLIPText(clip[0], dtype=jnp.bfloat16), clip[1], tokens)
    assert out.dtype == jnp.float32
    assert_close(out, expected["clip.embeddings"], 5e-2)


def test_same_shapes_are_compiled_once(clip):
    config, params = clip
    tokenizer = clip_tokenizer(CLIP / "tokenizer")
    encode_clip(CLIPText(config), params, tokenizer(["a red circle"]))
    with jax.no_tracing():
        encode_clip(CLIPText(config), params, tokenizer(["a blue square"]))


def test_t5_in_float16_is_refused(t5):
    config, params = t5
    with pytest.raises(InputError, match="float16"):
        encode_t5(
            T5Encoder(config, dtype=jnp.float16), params, t5_tokenizer(T5 / "tokenizer")(["a"])
        )
