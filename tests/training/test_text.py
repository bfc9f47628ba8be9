"""Captions become the same embeddings in each step as in a cache."""

import itertools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax import stages
from show1_jax.checkpoints.released import StageFolder
from show1_jax.data.text_cache import EMPTY
from show1_jax.errors import InputError
from show1_jax.stages.training import Noised
from show1_jax.training import loop, text
from show1_jax.training.metrics import Metrics
from show1_jax.training.random_encoders import CLIP, T5
from show1_jax.training.settings import check
from show1_jax.training.tasks import make_task
from tests.training.small import assert_same, made_up_batch, small_config, small_task

FOLDERS = {"keyframes": "show-1-base", "translation": "show-1-sr2"}
CAPTIONS = ["A red Circle ", "a blue square"]


@pytest.fixture
def read(checkpoint, tmp_path):
    """A part's captions, read for some way to encode them."""

    def run(way, captions=CAPTIONS, part="keyframes", clean=False):
        config = small_config(part, tmp_path, text=way)
        config.text.clean_captions = clean
        folder = StageFolder(checkpoint / FOLDERS[part])
        kind = stages.by_name(part).encoder
        return text.read_captions(config.train[part], config.text, kind, folder, captions)

    return run


def test_captions_are_encoded_once(read, tmp_path, monkeypatch):
    def lookup(*captions, clean=False):
        return read("cache", captions, clean=clean).lookup(str(tmp_path))

    cache = lookup("A red Circle ", "a blue square")
    first = cache("A red Circle ")
    assert first.dtype == np.float16
    assert not np.array_equal(first, cache("a blue square"))
    # As prompts are: in lower case, without space around.
    assert "a red circle" not in cache

    def unexpected(*_, **__):
        raise AssertionError("loaded again")

    with monkeypatch.context() as patch:
        patch.setattr(text, "load_encoder", unexpected)
        again = lookup("a blue square", "A red Circle ")
        np.testing.assert_array_equal(again("A red Circle "), first)
        with pytest.raises(AssertionError, match="loaded again"):
            lookup("a new one")
        # Captions that are cleaned are others.
        with pytest.raises(AssertionError, match="loaded again"):
            lookup("a blue square", clean=True)
    prepared = lookup("a red circle")
    np.testing.assert_allclose(prepared("a red circle"), first, atol=1e-3)


def test_few_captions_are_cached_and_many_are_not_even_read(read, monkeypatch):
    monkeypatch.setattr(text, "MAX_CACHE_BYTES", 3 * 24 * T5.d_model * 2)
    assert read("auto", ["a", "b", "a"]).cached == [EMPTY, "a", "b"]
    endless = (f"caption {i}" for i in itertools.count())
    assert read("auto", endless).cached is None
    assert next(endless) == "caption 3"
    assert read("step", endless).cached is None
    assert next(endless) == "caption 4"
    assert read("cache", ["a", "b", "c"]).cached == [EMPTY, "a", "b", "c"]
    monkeypatch.setattr(text, "MAX_CACHE_BYTES", 3 * 77 * CLIP.width * 2)
    assert read("auto", ["a", "b"], "translation").cached == [EMPTY, "a", "b"]
    assert read("auto", ["a", "b", "c"], "translation").cached is None
    settings = small_config("keyframes", text="always").train.keyframes
    with pytest.raises(
        InputError, match=r"train\.k\.text is 'always', not one of auto, cache, step"
    ):
        check(settings, "train.k", 1)


@pytest.mark.parametrize("part", FOLDERS)
def test_a_step_encodes_as_the_cache_has_it(part, read, tmp_path):
    """All that a loss takes of a batch, dropped captions included; and what samples take."""
    own = stages.part(part).from_config(small_config(part))
    networks = own.other_modules(jnp.float32)
    own = own.with_networks(networks)
    plain, _, constants = small_task(part)
    batch, found = made_up_batch(plain, 8), {}
    for way in ("cache", "step"):
        captions = read(way, part=part)
        lookup = pickle.loads(pickle.dumps(captions.lookup(str(tmp_path))))
        given = batch | {"text": np.stack([lookup(caption) for caption in CAPTIONS * 4])}
        own_constants = constants | {"empty": lookup(EMPTY)}
        if way == "step":
            assert given["text"].dtype == np.int32
            own_constants["text_encoder"] = captions.params()
        settings = small_config(part, caption_dropout=0.5).train[part]
        task = make_task(own, settings, captions.encoder)
        found[way] = jax.jit(task.prepare)(jax.random.key(2), own_constants, given)
    cached, stepped = found["cache"], found["step"]
    assert isinstance(cached, Noised)
    others = [
        each._replace(text=None, keys=jax.random.key_data(each.keys)) for each in (stepped, cached)
    ]
    assert_same(*others)
    assert len(np.unique(np.asarray(cached.text)[:, -1], axis=0)) == 3  # two, and the empty one
    # To the last bit of float16, but for sums in another order, of another number of captions.
    differ = np.asarray(stepped.text != cached.text)
    assert differ.mean() < 0.01
    np.testing.assert_allclose(stepped.text, cached.text, rtol=2**-10, atol=2**-14)
    np.testing.assert_array_equal(stepped.text, stepped.text.astype(np.float16))


@pytest.mark.slow
@pytest.mark.smoke
def test_losses_are_the_same_and_a_run_goes_on_the_other_way(
    checkpoint, data_dir, tmp_path, monkeypatch
):
    def losses(workdir, way):
        config = small_config(
            "keyframes", data_dir, text=way, steps=20, save_every=10, validate_every=5,
            sample_every=10, learning_rate=1e-3, caption_dropout=0.5,
        )  # fmt: skip
        config.checkpoint = str(checkpoint)
        loop.train(config, tmp_path / workdir)
        lines = (tmp_path / workdir / "keyframes" / "metrics.jsonl").read_text().splitlines()
        found = {}
        for line in map(json.loads, lines):
            found |= {(line["step"], key): line[key] for key in line if key.endswith("loss")}
        return found

    expected = losses("cached", "cache")
    assert len(expected) == 24

    write = Metrics.write

    def interrupted(self, step, numbers):
        write(self, step, numbers)
        if step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            losses("changed", "cache")
    for workdir, way in (("stepped", "step"), ("changed", "step")):
        found = losses(workdir, way)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            # Sums in another order differ by 2e-7 in the first step, by 2e-6 in the last.
            assert found[key] == pytest.approx(value, rel=5e-6), key


def test_another_encoder_has_another_fingerprint(tmp_path):
    def files(**contents):
        for path in tmp_path.rglob("*"):
            if path.is_file():
                path.unlink()
        for name, content in ({"weights": b"w" * 10, "vocabulary": b"v"} | contents).items():
            folder = tmp_path / ("tokenizer" if name == "vocabulary" else "text_encoder/params/d")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return text.encoder_fingerprint(tmp_path, False)

    same = files()
    assert files() == same
    assert text.encoder_fingerprint(tmp_path, True) != same
    others = [
        files(weights=b"w" * 9 + b"x"),
        files(weights=b"w" * 11),
        files(vocabulary=b"w"),
        files(more=b""),
        files(weights=b"w" * 2**20 + b"x"),
        files(weights=b"w" * 2**20 + b"xy"),
    ]
    assert len({same, *others}) == 1 + len(others)
    # What is no part of the encoder does not matter.
    before = files()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights").write_bytes(b"u")
    assert text.encoder_fingerprint(tmp_path, False) == before
