"""Random encoders tell every word of their captions apart."""

import shutil

import numpy as np
import pytest
from absl import logging
from show1_jax.configs.tiny import CHECKPOINT

from show1_jax.checkpoints.released import find_stages
from show1_jax.errors import InputError
from show1_jax.shapes.moving_shapes import captions
from show1_jax.shapes.scenes import caption, combinations
from show1_jax.text import tokenizers
from show1_jax.text.encoding import load_encoder
from show1_jax.training import random_encoders


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("tiny") / "checkpoint"
    random_encoders.make(checkpoint, captions())
    return find_stages(checkpoint)


@pytest.fixture(scope="module")
def encoder(encoders):
    return load_encoder(encoders["keyframes"], "float32")


def test_every_word_of_a_caption_is_one_token(encoder):
    texts = list(captions())[::97]
    words = [len(text.replace(",", " ,").split()) for text in texts]
    # And one for the end.
    np.testing.assert_array_equal(encoder.tokenize(texts).attention_mask.sum(1), np.add(words, 1))


def test_captions_that_differ_in_a_word_differ_in_their_embeddings(encoder):
    texts = [caption(combination) for combination in combinations()]
    ids = {tuple(row) for row in np.asarray(encoder.tokenize(texts).input_ids)}
    assert len(ids) == len(texts)
    close = ["a small red circle moving left", "a small red circle moving right"]
    one, other = np.asarray(encoder(close))
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("embedded", [False, True])
def test_other_words_are_read_as_an_article(encoder, embedded):
    if embedded:
        encoder = load_encoder(find_stages(CHECKPOINT)["keyframes"], "float32")
    prompts = ["a circle moving in a zig-zag on a black background"]
    prompts += [prompts[0].replace("zig-zag", word) for word in ("Loop", "the")]
    assert (encoder.tokenize(prompts).attention_mask.sum(1) == 11).all()
    zigzag, loop, the = np.asarray(encoder(prompts))
    np.testing.assert_array_equal(zigzag, loop)
    np.testing.assert_array_equal(zigzag, the)


def test_it_is_said_once_which_words_are_not_known(encoder, monkeypatch):
    messages = []
    tokenizers._WARNED.clear()
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    encoder.tokenize(['a green owl on a panda, left. ! "red"', "every owl moving up"])
    assert [text.partition(": ")[2] for text in messages] == [
        "'owl', 'panda', '\"red\"'.",
        "'every'.",
    ]


def test_it_is_the_same_whenever_it_is_made():
    words = random_encoders.words(captions())
    assert words == random_encoders.words(reversed(list(captions())))
    assert random_encoders.t5_files(words) == random_encoders.t5_files(words)
    assert random_encoders.clip_files(words) == random_encoders.clip_files(words)


def test_any_captions_have_words(tmp_path):
    texts = ["An Astronaut's mother-in-law, walking", "2 cafés (at night)"]
    found = random_encoders.words(texts)
    assert found == ["2", "an", "astronaut's", "at", "cafés", "mother-in-law", "night", "walking"]
    random_encoders.make(tmp_path, texts)
    encoders = find_stages(tmp_path)
    for kind, others in (("keyframes", "the the"), ("translation", "xx")):
        encoder = load_encoder(encoders[kind], "float32")
        texts = ["walking at night", "night at walking", others]
        one, other, strange = np.asarray(encoder(texts))
        assert min(np.abs(one - other).max(), np.abs(one - strange).max()) > 0.1


def test_what_is_lacking_is_made_and_what_is_there_stays(encoders, tmp_path):
    (checkpoint,) = {stage.folder.parent for stage in encoders.values()}
    for lacking in ("show-1-base/tokenizer", "show-1-sr2/text_encoder"):
        copy = tmp_path / lacking.replace("/", "-")
        shutil.copytree(checkpoint, copy)
        shutil.rmtree(copy / lacking)
        kept = copy / ("show-1-sr2" if "base" in lacking else "show-1-base") / "text_encoder"
        before = kept.stat().st_ino
        random_encoders.make(copy, captions())
        assert kept.stat().st_ino == before
        for kind in ("keyframes", "translation"):
            made, same = (find_stages(each)[kind] for each in (copy, checkpoint))
            one, other = (load_encoder(each, "float32")(["a red arc"]) for each in (made, same))
            np.testing.assert_array_equal(one, other)


def test_an_encoder_of_other_words_is_not_replaced(tmp_path):
    shutil.copytree(CHECKPOINT / "show-1-base", tmp_path / "show-1-base")
    with pytest.raises(InputError, match=r"does not know 'an'.* give another --workdir"):
        random_encoders.make(tmp_path, captions())
    assert not (tmp_path / "show-1-sr2").exists()


def test_clip_too_has_a_token_for_every_word(encoders):
    clip = load_encoder(encoders["translation"], "float32")
    texts = list(captions())[::997]
    words = [len(text.replace(",", " ,").split()) for text in texts]
    # And one for each end.
    np.testing.assert_array_equal(clip.tokenize(texts).attention_mask.sum(1), np.add(words, 2))
    one, other = np.asarray(clip(["a red circle", "a blue circle"]))
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (1, "a large red circle moving left on a black background"),
        (2, "a small blue circle moving left on a black background"),
        (3, "a small red square moving left on a black background"),
        (5, "a small red circle moving right on a black background"),
        (8, "a small red circle moving left on a white background"),
    ],
)
def test_a_word_changes_little_but_its_own_embedding(encoder, place, other):
    """Else what a word means could not be learned from captions and used in new ones."""
    one, changed = np.asarray(
        encoder(["a small red circle moving left on a black background", other])
    )
    change = np.square(changed - one).sum(-1) / np.square(one).sum(-1)
    assert change[place] > 1
    assert np.delete(change, place).max() < 0.3
