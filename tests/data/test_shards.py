"""WebDataset shards, read where they are."""

import io
import itertools
import json
import pickle
import runpy
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from show1_jax.data import clips, files, index
from show1_jax.data.clip import ClipSpec
from show1_jax.data.index import Team
from show1_jax.data.pipeline import Source, make_pipeline
from show1_jax.errors import InputError
from tests.data.videos import numbers, opened, write_clip, write_shard

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Ten seconds whose frames are numbered."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_clip(path, 100, 10, height=16, width=64)
    return path.read_bytes()


def metadata(number):
    """As video2dataset writes it."""
    streams = [{"codec_type": "audio", "width": 1}, {"codec_type": "video", "width": 320 + number}]
    return {
        "caption": f"caption {number}",
        "clip_score": {"aesthetic": 4 + number / 10},
        "video_metadata": {"streams": streams, "format": {"duration": f"{number}.5"}},
        "url": "https://example.com",
    }


def write_shards(folder, count=3, each=10, video=b"bytes"):
    """Shards whose clips are numbered on."""
    for shard in range(count):
        members = {
            f"{number:06}": {
                "json": metadata(number),
                "mp4": video + bytes([number % 256]),
                "txt": f"caption {number}",
            }
            for number in range(shard * each, shard * each + each)
        }
        write_shard(folder / f"{shard:05}.tar", members)
    return folder


def records(dataset):
    """All records by caption."""
    both = (record for side in ("train", "validation") for record in dataset.split(side))
    return {record["captions"][0].decode(): record for record in both}


def content(record):
    return files.read_range(record["path"], record["offset"], record["size"])


def test_clips_are_read_where_they_are(tmp_path, video):
    folder = write_shards(tmp_path / "clips", video=video)
    dataset = opened(folder, tmp_path / "data")
    found = records(dataset)
    assert list(dataset.captions()) == [f"caption {number}" for number in range(30)]
    assert set(found) == set(dataset.captions())
    for caption, record in found.items():
        assert content(record) == video + bytes([int(caption.split()[1])])
    assert found["caption 12"]["name"] == b"00001.tar/000012"
    made = clips.read(found["caption 12"], ClipSpec(3, 16, 64, 1.0), None)
    np.testing.assert_array_equal(np.diff(numbers(made)), 10)
    assert {len(dataset.split("train")), len(dataset.split("validation"))} == {28, 2}
    # Nothing but the index is stored, and another process opens it again.
    assert [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()] == ["index"]
    split = dataset.split("train")
    again = pickle.loads(pickle.dumps(split))
    assert again[5] == split[5]


@pytest.mark.parametrize("where", ["*.tar", "{00000..00001}.tar", "00001.tar"])
def test_names_of_shards(tmp_path, where):
    folder = write_shards(tmp_path / "clips")
    (folder / "notes.txt").touch()
    expected = {"*.tar": range(30), "{00000..00001}.tar": range(20)}.get(where, range(10, 20))
    found = list(opened(folder / where, tmp_path / "data").captions())
    assert found == [f"caption {number}" for number in expected]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("x*.tar", "matches no file; give the names of shards"),
        ("{00002..00004}.tar", "there is no file .*00003.tar"),
        (
            "nowhere",
            "nowhere is not a folder; give a folder with clips and a caption file, or with",
        ),
    ],
)
def test_names_of_none(tmp_path, where, message):
    write_shards(tmp_path / "clips")
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "clips" / where, tmp_path / "data")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_kinds_of_tar_files(tmp_path, kind):
    long = "/".join(["folder" * 10, "ö" * 50 if kind else "o" * 90])
    members = {
        long: {"mp4": b"1", "json": {"captions": ["one", " two ", "one", 3]}},
        "a/b": {"seg.MP4": b"22", "txt": "three"},
        "a/c": {"txt": "no video"},
        "a/d": {"webm": b"4444"},  # no caption
        "a/e": {"mp4": b"5", "txt": "\n", "json": "{broken"},
        "f": {"jpg": b"6", "json": {"caption": "four"}},
    }
    write_shard(tmp_path / "clips" / "0.tar", members, kind)
    dataset = opened(tmp_path / "clips", tmp_path / "data")
    found = records(dataset)
    captions = {name: [c.decode() for c in record["captions"]] for name, record in found.items()}
    assert captions == {"one": ["one", "two"], "three": ["three"], "four": ["four"]}
    assert [content(found[name]) for name in captions] == [content(r) for r in found.values()]
    assert {name: content(record) for name, record in found.items()} == {
        "one": b"1", "three": b"22", "four": b"6"
    }  # fmt: skip
    assert found["one"]["name"].decode() == f"0.tar/{long}"
    assert dataset.warnings == [f"{tmp_path}/clips/0.tar: 2 clips have no caption and are left out"]


@pytest.mark.parametrize("damage", ["cut", "header", "no end", "other", "empty"])
def test_a_damaged_shard_is_named_and_used_up_to_there(tmp_path, damage):
    folder = write_shards(tmp_path / "clips", count=2, each=4)
    path = folder / "00000.tar"
    good = path.read_bytes()
    wanted = {"cut": 2, "header": 2, "no end": 4, "other": 0, "empty": 0}[damage]
    place = good.index(b"000002.json")
    path.write_bytes({
        "cut": good[: place + 1500],
        "header": good[:place] + b"x" + good[place + 1 :],
        "no end": good[: good.rindex(b"caption 3") + 512 - (good.rindex(b"caption 3") % 512)],
        "other": b"not a tar file, but something else" * 100,
        "empty": b"",
    }[damage])  # fmt: skip
    dataset = opened(folder, tmp_path / "data")
    expected = [*range(wanted), 4, 5, 6, 7]
    assert list(dataset.captions()) == [f"caption {number}" for number in expected]
    (warning,) = dataset.warnings
    assert warning.startswith(f"{path} is damaged: it ")
    assert warning.endswith(f"; {wanted} clips before that are used")
    (folder / "00001.tar").unlink()
    if not wanted:
        with pytest.raises(InputError, match=r"clips gives no clips: .*00000.tar is damaged"):
            opened(folder, tmp_path / "data")


def test_a_changed_shard_is_indexed_anew_and_noticed_while_used(tmp_path):
    folder = write_shards(tmp_path / "clips")
    dataset = opened(folder, tmp_path / "data")
    assert content(records(dataset)["caption 29"])
    for path in folder.iterdir():
        path.unlink()  # which leaves what is open as it was
    write_shards(folder, each=11)
    again = opened(folder, tmp_path / "data")
    assert len(list(again.captions())) == 33
    assert content(records(again)["caption 32"]) == b"bytes" + bytes([32])
    record = records(again)["caption 32"]
    assert again.identity != dataset.identity
    (folder / "00002.tar").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"00002.tar has changed while it was used"):
        content(record)


def test_filters_say_what_they_remove(tmp_path):
    folder = write_shards(tmp_path / "clips")
    filters = {
        "width": (330, None),
        "duration": (None, 25.5),
        "clip_score/aesthetic": (5.1, 9),
        "caption_length": (1, 10),
    }
    dataset = opened(folder, tmp_path / "data", filters)
    assert list(dataset.captions()) == [f"caption {number}" for number in range(11, 26)]
    assert [message.partition(": ")[2] for message in dataset.messages] == [
        "video_metadata/streams/width in 330.. removes 10 of 30 clips",
        "video_metadata/format/duration in ..25.5 removes 4 of 20 clips",
        "clip_score/aesthetic in 5.1..9 removes 1 of 16 clips",
        "caption_length in 1..10 removes 0 of 15 clips",
    ]
    # Who is held out does not depend on them.
    whole = opened(folder, tmp_path / "data")
    held = {record["name"] for record in whole.split("validation")}
    assert not held & {record["name"] for record in dataset.split("train")}
    for wrong, message in (
        ({"length": (1, 2)}, "has no field 'length'; its fields are caption_length, clip_score/a"),
        ({"width": (1, 2)}, "width in 1..2 removes 30 of 30 clips; widen the filters"),
        ({"width": 3}, r"filters.width is 3, but must be a range such as \(2, 60\)"),
        ({"width": (3, "4")}, r"filters.width is \(3, '4'\), but must be a range"),
        ({"width": (4, 3)}, r"filters.width is \(4, 3\), which no number is within"),
    ):
        with pytest.raises(InputError, match=message) as error:
            opened(folder, tmp_path / "data", wrong)
        assert "\n" not in str(error.value)


def test_captions_out_of_range_are_not_used(tmp_path):
    members = {f"{i}": {"mp4": b"1", "json": {"captions": ["a", f"long {i}"]}} for i in range(3)}
    members["5"] = {"mp4": b"1", "txt": "b"}
    write_shard(tmp_path / "0.tar", members)
    dataset = opened(tmp_path, tmp_path / "data", {"caption_length": (3, None)})
    assert list(dataset.captions()) == ["long 0", "long 1", "long 2"]
    assert all(len(record["captions"]) == 1 for record in records(dataset).values())


def test_stretches_of_long_clips_are_clips(tmp_path, video):
    lengths = {"0": 10.0, "1": 10, "2": "9.9", "3": None}
    members = {
        key: {"mp4": video, "txt": f"caption {key}", "json": {"duration": length}}
        for key, length in lengths.items()
    }
    write_shard(tmp_path / "0.tar", members)
    dataset = opened(tmp_path, tmp_path / "data", clip_seconds=4.0)
    both = [record for side in ("train", "validation") for record in dataset.split(side)]
    windows = {}
    for record in both:
        windows.setdefault(record["captions"][0].decode(), []).append(record["window"])
    assert windows["caption 0"] == windows["caption 2"] == [(0, 4), (4, np.inf)]
    assert windows["caption 3"] == [(0, np.inf)]
    middles = [
        numbers(clips.read(record, ClipSpec(3, 16, 64, 1.0), None))[1]
        for record in both
        if record["captions"] == [b"caption 1"]
    ]
    assert np.abs(np.array(middles) - [20, 70]).max() <= 1
    # A file on disk and one in a shard are read alike.
    with open(tmp_path / "0.tar", "rb") as file:
        file.seek(both[0]["offset"])
        assert file.read(len(video)) == video


def test_large_members_are_read_in_part(tmp_path, video, monkeypatch):
    write_shard(tmp_path / "0.tar", {k: {"mp4": video, "json": {"duration": 10, "caption": k}}
                                     for k in "ab"})  # fmt: skip
    dataset = opened(tmp_path, tmp_path / "data", clip_seconds=5.0)
    record = dataset.split("train")[1]
    expected = clips.read(record, ClipSpec(3, 16, 64, 1.0), None)
    monkeypatch.setattr(clips, "MAX_WHOLE", 10)
    monkeypatch.setattr(clips, "BLOCK", 64)
    found = clips.read(record, ClipSpec(3, 16, 64, 1.0), None)
    np.testing.assert_array_equal(found, expected)


def test_processes_build_an_index_together(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "clips", count=7, each=3)
    whole = records(opened(folder, tmp_path / "alone"))
    built, scan = [], index.scan
    monkeypatch.setattr(index, "scan", lambda *a: built.append(a[0].path) or scan(*a))
    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        teams = [Team(number, 2, lambda name: barrier.wait(60)) for number in range(2)]
        made = list(pool.map(lambda team: opened(folder, tmp_path / "both", team=team), teams))
    assert sorted(built) == sorted(str(path) for path in folder.iterdir())  # each once
    for dataset in made:
        assert records(dataset) == whole
    # Where they share no disk, each builds what it lacks.
    team = Team(1, 2, lambda name: None)
    assert records(opened(folder, tmp_path / "other", team=team)) == whole


def test_a_build_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "clips", count=5, each=3)
    scan, built = index.scan, []

    def interrupted(shard, *rest):
        built.append(shard.path)
        if len(built) == 3:
            raise KeyboardInterrupt
        return scan(shard, *rest)

    monkeypatch.setattr(index, "scan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(folder, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("index"))
    found = opened(folder, tmp_path / "data")
    assert len(built) == 6  # the third one twice
    assert len(list(found.captions())) == 15


def test_workers_of_a_machine_build_the_same(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "clips", count=4, each=3)
    alone = records(opened(folder, tmp_path / "alone"))
    monkeypatch.setattr(index, "MIN_PARTS", 2)
    monkeypatch.setattr(index, "MAX_WORKERS", 1)
    assert records(opened(folder, tmp_path / "data")) == alone


def test_files_stay_few_and_are_shared_by_threads(tmp_path, monkeypatch):
    open_files = files.OpenFiles(3)
    monkeypatch.setattr(files, "_open_files", open_files)
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 100)

    def read(item):
        number = item * 7 % 10
        return files.read_range(str(tmp_path / str(number)), 5, 50) == bytes([number]) * 50

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(300)))
    assert len(open_files._entries) == 3
    with pytest.raises(FileNotFoundError):
        files.read_range(str(tmp_path / "none"), 0, 1)


def test_indexing_needs_no_jax():
    """The workers that build an index would load it, and it may want their accelerator."""
    text = "import sys, show1_jax.data.index; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.lower()) is False


def test_processes_share_the_epochs_of_shards_and_resume(tmp_path):
    folder = write_shards(tmp_path / "clips", count=5, each=8)
    split = opened(folder, tmp_path / "data").split("train")  # 38 clips

    def read(record, spec, rng):
        return np.full((1, 1, 1, 3), content(record)[-1])

    def batches(rows=None):
        made = make_pipeline([Source(split, read)], ClipSpec(1, 1, 1), batch_size=2, seed=0,
                             training=True, rows=rows)  # fmt: skip
        return iter(made)

    def epoch(iterator):
        found = itertools.islice(iterator, 19)
        return np.array([batch["video"][:, 0, 0, 0, 0] for batch in found])

    first, second, alone = batches([0]), batches([1]), batches()
    whole = [np.concatenate([epoch(first), epoch(second)], axis=1) for _ in range(3)]
    expected = sorted(record["name"][-6:] for record in split)
    for each in whole:
        assert [b"%06d" % number for number in sorted(each.ravel())] == expected
    assert not any(np.array_equal(whole[i], whole[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_array_equal(epoch(alone), whole[0])
    for _ in range(7):
        next(alone)
    restored = batches()
    restored.set_state(json.loads(json.dumps(alone.get_state())))
    np.testing.assert_array_equal(epoch(restored)[:12], whole[1][7:])


@pytest.mark.slow
def test_a_run_of_two_processes_at_scale(tmp_path):
    """The figures are nobody's business here; the order is."""
    command = [sys.executable, "-m", "tests.data.scale", f"--dir={tmp_path}", "--clips=4000"]
    command += ["--shards=20", "--batch=100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "3 epochs of 3,800 clips: disjoint in 2 processes, each clip once" in done.stdout
    assert "restored exactly" in done.stdout


def test_the_shards_of_the_example_are_read(tmp_path):
    """A package as npm has them, of animations and a still picture."""
    example = runpy.run_path(str(ROOT / "examples" / "emoji_shards.py"))
    frames = [Image.new("RGB", (32, 32), (0, 8 * i, 255)) for i in range(16)]
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as file:
        for key, count in (("1f600", 16), ("1f44b-1f3fd", 16), ("1f1eb-1f1f7", 16), ("1f601", 1)):
            content = io.BytesIO()
            more = {"save_all": True, "append_images": frames[1:], "duration": 125}
            frames[0].save(content, "WEBP", **(more if count > 1 else {}))
            example["add"](file, f"package/assets/{key}.webp", content.getvalue())
    package.seek(0)
    assert example["write_shards"](package, tmp_path / "emoji", 2) == 3
    dataset = opened(tmp_path / "emoji", tmp_path / "data", {"duration": (2, 2)})
    assert list(dataset.captions())[::2] == [
        "an animated emoji of grinning face",
        "an animated emoji of waving hand sign with medium skin",
        "an animated emoji of the flag of FR",
    ]
    for record in records(dataset).values():
        made = clips.read(record, ClipSpec(3, 16, 16, 2.0), None)
        green = made[:, 8, 8, 1].astype(int)
        assert np.abs(np.diff(green) - 32).max() <= 6
