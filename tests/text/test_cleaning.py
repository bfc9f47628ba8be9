"""Prompt cleaning against pairs recorded from diffusers' caption cleaner."""

import json

import pytest

from show1_jax.text.cleaning import clean_caption, normalize
from tests.conftest import GOLDENS

CAPTIONS = json.loads((GOLDENS / "captions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("pair", CAPTIONS, ids=lambda pair: pair["raw"][:30])
def test_cleans_captions_as_recorded(pair):
    assert clean_caption(pair["raw"]) == pair["cleaned"]


@pytest.mark.parametrize("caption", ["folder/file", "C:\\path", "<!-- x", "a&b", "x" * 5000])
def test_cleans_what_looks_like_markup_without_warning(caption):
    clean_caption(caption)


def test_normalizes_as_the_published_script():
    assert (
        normalize("  A Panda,\n besides  the Waterfall! \n") == "a panda,\n besides  the waterfall!"
    )
    assert normalize("") == ""
