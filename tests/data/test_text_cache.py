import itertools
import os
import pickle
import resource

import numpy as np
import pytest

from show1_jax.data.text_cache import TextCache, build_text_cache
from show1_jax.errors import InputError

CAPTIONS = ["a red circle", "a blue square", "", "a dog – «running»", "a red circle"]


class Encoder:
    """Embeddings that tell captions apart, and a count of what was asked."""

    def __init__(self, fail_after=None):
        self.asked = []
        self.fail_after = fail_after

    def __call__(self, captions):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += captions
        return np.stack([self.one(caption) for caption in captions])

    @staticmethod
    def one(caption):
        return np.random.default_rng(list(caption.encode())).normal(size=(3, 5))


def check(cache, captions):
    for caption in captions:
        assert cache(caption).dtype == np.float16
        np.testing.assert_allclose(cache(caption), Encoder.one(caption), atol=2e-3)


def test_round_trip(tmp_path):
    encoder = Encoder()
    cache = build_text_cache(tmp_path / "deep" / "cache", CAPTIONS, encoder, batch_size=2)
    assert encoder.asked == ["", "a red circle", "a blue square", "a dog – «running»"]
    check(cache, CAPTIONS)
    check(TextCache(tmp_path / "deep" / "cache"), CAPTIONS)
    assert "a red circle" in cache
    assert "a cat" not in cache


def test_the_empty_caption_is_always_there(tmp_path):
    check(build_text_cache(tmp_path, [], Encoder()), [""])


def test_an_interrupted_run_goes_on(tmp_path):
    captions = [f"caption {i}" for i in range(7)]
    with pytest.raises(KeyboardInterrupt):
        build_text_cache(tmp_path, captions, Encoder(fail_after=4), batch_size=2)
    # Cut off between the two files of a part, and while writing a file.
    np.save(tmp_path / "0123456789abcdef.npy", np.zeros((2, 3, 5), np.float16))
    (tmp_path / ".0123.partial").write_bytes(b"half")
    encoder = Encoder()
    cache = build_text_cache(tmp_path, captions, encoder, batch_size=2)
    assert encoder.asked == captions[3:]
    check(cache, [*captions, ""])


def test_captions_can_be_added_and_nothing_is_encoded_twice(tmp_path):
    build_text_cache(tmp_path, CAPTIONS, Encoder())
    encoder = Encoder()
    check(build_text_cache(tmp_path, [*CAPTIONS, "more"], encoder), [*CAPTIONS, "more"])
    assert encoder.asked == ["more"]


@pytest.fixture
def few_files():
    """Lets the process open ten files more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/dev/fd")}
    free = (number for number in itertools.count() if number not in taken)
    last = next(itertools.islice(free, 10, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (last, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_cache_of_more_parts_than_files_can_be_open(tmp_path, few_files):
    captions = [f"caption {i}" for i in range(100)]
    for half in (captions[:50], captions):
        cache = build_text_cache(tmp_path, half, Encoder(), batch_size=1)
    assert len(list(tmp_path.glob("*.npy"))) == 101
    check(cache, captions)
    check(pickle.loads(pickle.dumps(cache)), captions)


def test_bad_caches_are_explained(tmp_path):
    cache = build_text_cache(tmp_path, CAPTIONS, Encoder())
    with pytest.raises(InputError, match="lacks the caption 'a cat'"):
        cache("a cat")
    build_text_cache(tmp_path, ["more"], Encoder())
    for path in sorted([*tmp_path.glob("*.npy"), *tmp_path.glob("*.json")]):
        whole = path.read_bytes()
        for damaged in (b"", whole[:-7]):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"\w{16}.json or its .npy cannot be read.*remove"):
                TextCache(tmp_path)
        path.write_bytes(whole)
    for path in tmp_path.glob("*.npy"):  # while it is used
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"\w{16}.npy cannot be read"):
        cache(CAPTIONS[0])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        build_text_cache(tmp_path / "file" / "cache", CAPTIONS, Encoder())


def test_two_runs_that_fill_it_at_once_keep_what_each_encoded(tmp_path):
    """The second begins while the first encodes."""
    others = ["a green circle", "a green square"]

    def encode(captions):
        build_text_cache(tmp_path, others, Encoder())
        return Encoder()(captions)

    check(build_text_cache(tmp_path, CAPTIONS, encode), [*CAPTIONS, *others])


def test_processes_that_fill_it_together_encode_each_caption_once(tmp_path):
    captions, encoders, waits = [f"caption {i}" for i in range(40)], [], []
    for index in range(3):
        encoders.append(Encoder())
        share = (index, 3)
        cache = build_text_cache(
            tmp_path, captions, encoders[-1], 4, share, lambda: waits.append(len(encoders))
        )
    check(cache, ["", *captions])
    assert waits == [1, 2, 3]
    asked = [encoder.asked for encoder in encoders]
    assert sorted(caption for each in asked for caption in each) == sorted(["", *captions])
    assert all(len(each) > 5 for each in asked)
    # One that was interrupted encodes what is its own alone.
    encoder = Encoder()
    build_text_cache(tmp_path, [*captions, "one", "two", "three"], encoder, 4, (1, 3))
    assert set(encoder.asked) < {"one", "two", "three"}


@pytest.mark.parametrize("value", [1e6, np.nan])
def test_what_float16_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="not finite in float16"):
        build_text_cache(tmp_path, [], lambda c: np.full((len(c), 3, 5), value))


def test_another_process_opens_it_again_instead_of_being_sent_it(tmp_path):
    cache = build_text_cache(tmp_path, CAPTIONS, Encoder())
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)("a red circle"), cache("a red circle"))


@pytest.mark.parametrize("content", ['{"a": 1}', '[["a"]]', "5", "[" * 100_000])
def test_a_part_that_lists_no_captions_is_refused(content, tmp_path):
    build_text_cache(tmp_path, CAPTIONS, Encoder())
    (path,) = tmp_path.glob("*.json")
    path.write_text(content)
    with pytest.raises(InputError, match="cannot be read"):
        TextCache(tmp_path)


@pytest.mark.parametrize("value", [np.full((3, 5), "text"), np.full((3, 5), np.nan, np.float16)])
def test_embeddings_that_are_none_are_refused(value, tmp_path):
    build_text_cache(tmp_path, ["a red circle"], Encoder())
    (path,) = tmp_path.glob("*.npy")
    np.save(path, np.stack([value, value]))
    with pytest.raises(InputError, match="has values that are not finite float16"):
        TextCache(tmp_path)("a red circle")
