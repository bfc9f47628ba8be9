import itertools
import json

import grain
import numpy as np
import pytest

from show1_jax.data import clips
from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.data.pipeline import Source, make_pipeline, open_split, proportions
from show1_jax.data.text_cache import build_text_cache
from show1_jax.errors import InputError
from show1_jax.shapes import moving_shapes
from tests.data.videos import numbers, opened, write_clip

COUNT = 10
SPEC = ClipSpec(frames=2, height=1, width=1)


class Records:
    """Named records in memory."""

    def __init__(self, count=COUNT):
        self.names = [f"clip{i}" for i in range(count)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index].encode()
        return {"name": name, "captions": [b"caption of " + name, b"another"]}


def read(record, spec, rng):
    """A clip that carries the number of its record and what it drew."""
    video = np.zeros((spec.frames, spec.height, spec.width, 3), np.uint8)
    video[..., 0] = int(record["name"][4:])
    video[..., 1:] = 0 if rng is None else rng.integers(256, size=2)
    return video


FLAWED = Records()


def read_flawed(record, spec, rng):
    if record["name"] in (b"clip3", b"clip7"):
        raise UnusableClip("it is broken")
    return read(record, spec, rng)


def pipeline(records=None, read=read, batch_size=2, seed=0, training=True, **settings):
    records = Records() if records is None else records
    return make_pipeline(
        [Source(records, read)],
        SPEC,
        batch_size=batch_size,
        seed=seed,
        training=training,
        **settings,
    )


def pixels(batches, count=None):
    """One pixel per example: the record's number and its two random ones."""
    found = [tuple(p) for b in itertools.islice(batches, count) for p in b["video"][:, 0, 0, 0]]
    return [tuple(map(int, pixel)) for pixel in found]


def test_what_a_batch_holds():
    batch = next(iter(pipeline(text=lambda caption: np.full((3, 4), len(caption), np.float16))))
    assert {key: (value.shape, value.dtype.kind) for key, value in batch.items()} == {
        "video": ((2, 2, 1, 1, 3), "u"),
        "caption": ((2,), "U"),
        "text": ((2, 3, 4), "f"),
    }
    number = batch["video"][0, 0, 0, 0, 0]
    assert batch["caption"][0] in (f"caption of clip{number}", "another")


def test_training_uses_all_captions_of_a_clip_and_evaluation_the_first():
    texts = {
        training: [
            str(text)
            for batch in itertools.islice(pipeline(training=training), 4 * COUNT // 2)
            for text in batch["caption"]
        ]
        for training in (True, False)
    }
    assert 0.3 < texts[True].count("another") / len(texts[True]) < 0.7
    assert texts[False] == [f"caption of clip{number}" for number in range(COUNT)]


def test_evaluation_is_in_order_once_and_without_chance():
    found = pixels(pipeline(batch_size=3, training=False))
    assert found == [(i, 0, 0) for i in range(9)]  # the tenth fills no batch


def test_the_same_seed_gives_the_same_examples_whatever_the_threads_and_batches():
    expected = pixels(pipeline(threads=0), 20)
    assert pixels(pipeline(threads=4), 20) == expected
    assert pixels(pipeline(batch_size=4), 10) == expected
    assert pixels(pipeline(seed=1), 20) != expected


def test_each_epoch_has_every_record_in_another_order_and_augmentation():
    found = pixels(pipeline(), 15)
    epochs = [found[i : i + COUNT] for i in range(0, 30, COUNT)]
    orders = [[number for number, *_ in epoch] for epoch in epochs]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    drawn = {pixel[1:] for pixel in found}
    assert len(drawn) == len(found)


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0], [1, 2, 3]]])
@pytest.mark.parametrize("flawed", [False, True])
def test_processes_share_the_batches_of_one(shares, flawed):
    given = (FLAWED, read_flawed) if flawed else ()
    whole = iter(pipeline(*given, batch_size=4))
    parts = [iter(pipeline(*given, batch_size=4, rows=rows)) for rows in shares]
    for _ in range(12):
        together = dict.fromkeys(range(4))
        for rows, part in zip(shares, parts, strict=True):
            together |= dict(zip(rows, pixels(part, 1), strict=True))
        assert list(together.values()) == pixels(whole, 1)


@pytest.mark.parametrize("after", [0, 1, 3, 4, 5, 12])  # an epoch is 3 1/3 batches
@pytest.mark.parametrize("threads", [0, 2])
def test_a_restored_iterator_continues_exactly(after, threads):
    iterator = iter(pipeline(FLAWED, read_flawed, batch_size=3, threads=threads))
    pixels(iterator, after)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = pixels(iterator, 9)
    restored = iter(pipeline(FLAWED, read_flawed, batch_size=3, threads=threads))
    next(restored)
    restored.set_state(state)
    assert pixels(restored, 9) == expected


def test_unusable_clips_are_skipped_counted_and_named_once(caplog):
    found = pixels(pipeline(FLAWED, read_flawed), 12)
    assert len(found) == 24
    assert {number for number, *_ in found} == {0, 1, 2, 4, 5, 6, 8, 9}
    # What is random about the others does not change.
    whole = pixels(pipeline(), 12)
    assert all(a == b for a, b in zip(found, whole, strict=True) if b[0] not in (3, 7))
    assert len(set(found)) == len(found)
    skipped = [r.getMessage() for r in caplog.records if "skipped clip" in r.getMessage()]
    assert len(skipped) == 2
    assert skipped[1].endswith(": it is broken (2 so far)")
    assert {message.split()[2].rstrip(":") for message in skipped} == {"clip3", "clip7"}


def test_bad_clips_met_again_before_a_good_one_is_read_do_no_harm():
    met = itertools.count()

    def slow(record, spec, rng):
        if record["name"] in (b"clip3", b"clip7") or next(met) < 12:
            raise UnusableClip("it is broken")
        return read(record, spec, rng)

    assert pixels(pipeline(FLAWED, slow), 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("one_file", [True, False])
def test_nothing_usable_ends_the_run_with_the_reason(training, one_file):
    def broken(record, spec, rng):
        raise UnusableClip("it is broken")

    records = Records()
    if one_file:
        records.names = ["clip0"] * len(records)
    message = r"none of the 10 clips can be used, for example clip\d: it is broken"
    with pytest.raises(InputError, match=message):
        next(iter(pipeline(records, broken, training=training)))


def mixture(counts=(10, 3), weights=(1, 0.5), **settings):
    """Of datasets whose records are numbered on."""
    first = np.cumsum([0, *counts])
    sources = []
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        records = Records(count)
        records.names = [f"clip{first[number] + i}" for i in range(count)]
        sources.append(Source(records, read, weight))
    given = {"batch_size": 3, "seed": 0, "training": True} | settings
    return make_pipeline(sources, SPEC, **given)


def test_a_mixture_has_exact_shares_and_epochs_of_each_dataset():
    found = [number for number, *_ in pixels(mixture(), 30)]
    batches = np.reshape(found, (30, 3))
    assert ((batches >= 10).sum(axis=1) == 1).all()  # half as many of the second as of the first
    for low, high, size in ((0, 10, 10), (10, 13, 3)):
        own = [number for number in found if low <= number < high]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert all(sorted(epoch) == list(range(low, high)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    # Validation has all of them once, and begins with the same shares.
    evaluated = [number for number, *_ in pixels(mixture(batch_size=1, training=False))]
    assert sorted(evaluated) == list(range(13))
    assert sum(number >= 10 for number in evaluated[:6]) == 2


def test_a_mixture_continues_exactly_and_is_shared():
    iterator = iter(mixture())
    pixels(iterator, 5)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = pixels(iterator, 9)
    restored = iter(mixture(threads=0))
    restored.set_state(state)
    assert pixels(restored, 9) == expected
    parts = [iter(mixture(rows=rows)) for rows in ([0, 2], [1])]
    for part in parts:
        pixels(part, 5)
    together = [[pixels(part, 1) for part in parts] for _ in range(9)]
    assert [p for (a, c), (b,) in together for p in (a, b, c)] == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((1, 1), [1, 1]), ((0.7, 0.3), [7, 3]), ((3, 1, 0.5), [6, 2, 1]), ((1e-9, 1), [1, 1000])],
)
def test_weights_are_proportions(weights, expected):
    assert proportions(weights) == expected


def test_bad_settings_are_refused():
    for settings in ({"rows": [2]}, {"rows": []}, {"batch_size": 0}):
        with pytest.raises(InputError, match="but must be within a batch of"):
            pipeline(**settings)
    with pytest.raises(InputError, match="10 clips are too few for a batch of 12"):
        pipeline(batch_size=12, training=False)


def test_video_files_from_disk_to_batches(tmp_path, caplog):
    folder = tmp_path / "clips"
    folder.mkdir()
    lengths = {"long.mp4": 100, "longer.mp4": 120, "short.mp4": 5, "broken.mp4": 60}
    for name, frames in lengths.items():
        write_clip(folder / name, frames, 10)
    whole = (folder / "broken.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    lengths["held.mp4"] = 100  # whose name has the least hash
    write_clip(folder / "held.mp4", 100, 10)
    lines = [f"{name},the {name} clip" for name in lengths]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *lines]))
    dataset = opened(folder, tmp_path / "data")
    records = dataset.split("train")
    assert len(records) == 4
    assert [record["name"] for record in dataset.split("validation")] == [b"held.mp4"]

    cache = build_text_cache(
        tmp_path / "text", dataset.captions(), lambda c: np.array([[[len(x)]] for x in c])
    )
    batches = make_pipeline(
        [Source(records, clips.read)],
        ClipSpec(4, 24, 32, 2.0),
        batch_size=4,
        seed=0,
        training=True,
        text=cache,
    )
    seen = set()
    for batch in itertools.islice(batches, 4):
        assert batch["video"].shape == (4, 4, 24, 32, 3)
        for video, caption, text in zip(
            batch["video"], batch["caption"], batch["text"], strict=True
        ):
            np.testing.assert_array_equal(np.diff(numbers(video)), 5)
            assert text == len(caption)
            seen.add((str(caption), int(numbers(video)[0])))
    assert {caption for caption, _ in seen} == {"the long.mp4 clip", "the longer.mp4 clip"}
    assert len(seen) > 10  # other windows in other epochs
    assert "skipped clip short.mp4: it is too short: 0.40 s, but 1.50 s are needed" in caplog.text
    assert "skipped clip broken.mp4: it cannot be decoded" in caplog.text


def test_shapes_from_disk_to_batches(tmp_path):
    config = moving_shapes.MovingShapesConfig(train=12, validation=4, test=4, looks=4)
    builder = moving_shapes.MovingShapes(config=config, data_dir=tmp_path)
    batches = make_pipeline(
        [Source(open_split(builder, "test"), moving_shapes.read)],
        ClipSpec(8, 20, 32),
        batch_size=2,
        seed=0,
        training=False,
    )
    assert isinstance(batches, grain.IterDataset)
    found = list(batches)
    assert [batch["video"].shape for batch in found] == [(2, 8, 20, 32, 3)] * 2
    captions = {str(caption) for batch in found for caption in batch["caption"]}
    records = open_split(builder, "test")
    assert captions == {record["captions"][0].decode() for record in records}
