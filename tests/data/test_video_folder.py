import json
import pathlib

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from show1_jax.data import decoding, video_folder
from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.data.pipeline import open_split
from show1_jax.data.video_folder import VideoFolder, VideoFolderConfig, list_clips, split
from show1_jax.errors import InputError
from show1_jax.media import write_mp4
from tests.data.videos import numbers, write_clip


def build(folder, data_dir):
    """The records of both splits."""
    builder = VideoFolder(config=VideoFolderConfig(folder), data_dir=data_dir)
    return [record for name in ("train", "validation") for record in open_split(builder, name)]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def record(tmp_path):
    """Ten seconds at 25 frames per second, read into memory."""
    write_clip(tmp_path / "clip.mp4", 250, 25)
    return {"video": (tmp_path / "clip.mp4").read_bytes()}


def test_webvid_layout(tmp_path, caplog):
    folder = tmp_path / "webvid"
    write(
        folder / "results_2M_val.csv",
        "videoid,contentUrl,duration,page_dir,name\n"
        '11,https://example.com/11.mp4,PT00H00M01S,000001_000050,"Two cats, playing"\n'
        "12,https://example.com/12.mp4,PT00H00M01S,000051_000100,A dog – running\n"
        "13,https://example.com/13.mp4,PT00H00M01S,000051_000100,gone\n",
    )
    (folder / "videos" / "000001_000050").mkdir(parents=True)
    write_clip(folder / "videos" / "000001_000050" / "11.mp4", 5, 5)
    write_clip(folder / "12.mp4", 6, 5)

    records = build(folder, tmp_path / "tfds")
    found = {r["name"].decode(): (r["captions"][0].decode(), r["video"]) for r in records}
    assert found == {
        "videos/000001_000050/11.mp4": (
            "Two cats, playing",
            (folder / "videos" / "000001_000050" / "11.mp4").read_bytes(),
        ),
        "12.mp4": ("A dog – running", (folder / "12.mp4").read_bytes()),
    }
    gone = folder / "videos" / "000051_000100" / "13.mp4"
    assert f"1 of 3 clips are missing and skipped: {gone}\n" in caplog.text


def test_any_folder_with_captions(tmp_path):
    rows = [{"file": "a/1.mp4", "caption": "one"}, {"file": "2.mp4", "caption": "two\n"}]
    as_csv, as_json = tmp_path / "csv", tmp_path / "json"
    write(as_csv / "captions.csv", '\ufefffile,caption\na/1.mp4,one\n2.mp4,"two\n"\n')
    write(as_json / "captions.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    for folder in (as_csv, as_json):
        write(folder / "a" / "1.mp4", "bytes")
        write(folder / "2.mp4", "bytes")
        clips = list_clips(folder)
        assert [clip.caption for clip in clips] == ["one", "two\n"]
        assert [clip.path for clip in clips] == [folder / row["file"] for row in rows]


def test_other_captions_make_another_dataset(tmp_path):
    write(tmp_path / "captions.csv", "file,caption\n1.mp4,one\n")
    first = VideoFolderConfig(tmp_path).name
    assert VideoFolderConfig(tmp_path).name == first
    write(tmp_path / "captions.csv", "file,caption\n1.mp4,two\n")
    assert VideoFolderConfig(tmp_path).name != first


def test_bytes_are_stored_unchanged(tmp_path):
    write(tmp_path / "in" / "captions.csv", "file,caption\n1.mp4,one\n2.mp4,two\n")
    for name in ("1.mp4", "2.mp4"):
        (tmp_path / "in" / name).write_bytes(b"\0\xff not a video \0\0")
    for record in build(tmp_path / "in", tmp_path / "tfds"):
        assert record["video"] == b"\0\xff not a video \0\0"


def test_all_captions_of_a_file_are_on_one_side(tmp_path):
    folder = tmp_path / "in"
    names = [f"{i}.mp4" for i in range(40)]
    rows = [f"{name},{word} {name}" for word in ("a", "the", "some") for name in names]
    rows += [f"./{name},again {name}" for name in names] + ["link.mp4,the linked 7.mp4"]
    write(folder / "captions.csv", "\n".join(["file,caption", *rows]))
    for name in names:
        write(folder / name, name)
    (folder / "link.mp4").symlink_to("7.mp4")
    sides = split(list_clips(folder), folder)
    held_out, trained = (
        {clip.path.resolve().name for clip in sides[name]} for name in ("validation", "train")
    )
    assert len(held_out) == 2
    assert held_out | trained == set(names)
    assert not held_out & trained
    assert sum(map(len, sides.values())) == len(rows)
    # Whatever their order, and where the folder lies.
    backwards = split(list_clips(folder)[::-1], folder)
    assert {side: sorted(clips) for side, clips in backwards.items()} == {
        side: sorted(clips) for side, clips in sides.items()
    }
    moved = folder.rename(tmp_path / "moved")
    again = split(list_clips(moved), moved)["validation"]
    assert {clip.path.resolve().name for clip in again} == held_out
    # And so they are stored.
    builder = VideoFolder(config=VideoFolderConfig(moved), data_dir=tmp_path / "tfds")
    for name, clips in sides.items():
        records = open_split(builder, name)
        assert len(records) == len({clip.path for clip in clips})
        assert sorted(text.decode() for record in records for text in record["captions"]) == sorted(
            clip.caption for clip in clips
        )


class SplitByRecord(VideoFolder, skip_registration=True):
    """As it was before."""

    name = "video_folder"
    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(list_clips(self.builder_config.folder))}


def test_a_dataset_that_was_not_split_by_file_is_built_again(tmp_path):
    write(tmp_path / "in" / "captions.csv", "file,caption\n1.mp4,one\n2.mp4,two\n")
    for name in ("1.mp4", "2.mp4"):
        write(tmp_path / "in" / name, "bytes")
    config = VideoFolderConfig(tmp_path / "in")
    before = SplitByRecord(config=config, data_dir=tmp_path / "tfds")
    assert len(open_split(before, "train")) == 2
    after = VideoFolder(config=config, data_dir=tmp_path / "tfds")
    assert after.data_path.parent == before.data_path.parent
    assert [len(open_split(after, name)) for name in ("train", "validation")] == [1, 1]


@pytest.mark.parametrize("count", [2, 3, 30, 100])
def test_a_twentieth_of_the_files_is_for_validation_and_one_at_least(tmp_path, count):
    clips = [video_folder.Clip(tmp_path / f"{i}.mp4", "") for i in range(count)]
    sides = split(clips, tmp_path)
    assert len(sides["validation"]) == max(1, round(count / 20))
    assert len(sides["train"]) == count - len(sides["validation"])


def test_one_file_is_too_few_however_often_it_is_described(tmp_path):
    write(tmp_path / "in" / "captions.csv", "file,caption\n1.mp4,one\n1.mp4,two\n")
    write(tmp_path / "in" / "1.mp4", "bytes")
    with pytest.raises(InputError, match=r"in has only one clip, .*1\.mp4; add another one"):
        build(tmp_path / "in", tmp_path / "tfds")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "in" / "captions.csv", "file,caption\n1.mp4,one\n2.mp4,two\n")
    for name in ("1.mp4", "2.mp4"):
        write(tmp_path / "in" / name, "bytes")
    read_bytes = pathlib.Path.read_bytes

    def fail(path):
        if path.suffix == ".mp4":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", fail)
    with pytest.raises(InputError, match=r"[12]\.mp4 cannot be read: Permission denied"):
        build(tmp_path / "in", tmp_path / "tfds")
    monkeypatch.undo()
    assert len(build(tmp_path / "in", tmp_path / "tfds")) == 2


def test_files_may_lie_outside_of_the_folder(tmp_path):
    outside = tmp_path / "outside.mp4"
    write(outside, "bytes")
    write(tmp_path / "in" / "a.csv", f"file,caption\n../outside.mp4,one\n{outside},two\n")
    assert [clip.path.resolve() for clip in list_clips(tmp_path / "in")] == [outside] * 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must have one .csv or .jsonl file of captions, but has none"),
        ({"a.csv": "", "b.jsonl": ""}, "of captions, but has a.csv, b.jsonl"),
        ({"a.csv": ""}, "gives no clips: it lists none"),
        ({"a.csv": "file,caption\n"}, "gives no clips: it lists none"),
        (
            {"a.csv": "file,caption\n" + "".join(f"{i}.mp4,one\n" for i in range(1, 8))},
            r"gives no clips: all 7 files are missing: \S*1.mp4, .*, \S*5.mp4 and 2 more$",
        ),
        ({"a.csv": "file,text\n1.mp4,one\n"}, "line 2: has file, text, but needs file and caption"),
        (
            {"a.csv": "file,caption\n1.mp4,one\n\n2.mp4,a bike, on a street\n"},
            "a.csv, line 4: has 3 field.s., but the header has 2; quote captions that have",
        ),
        ({"a.csv": "file,caption\n1.mp4\n"}, "line 2: has 1 field.s., but the header has 2; quote"),
        ({"a.csv": "name,file,caption\na,1.mp4\n"}, "line 2: has 2 field.s., but the header has 3"),
        (
            {"a.csv": 'file,caption\n1.mp4,"one\n2.mp4,two\n'},
            "line 2: unexpected end of data; quote",
        ),
        ({"a.csv": 'file,caption\n1.mp4,"one" or two\n'}, "line 2: ',' expected after '\"'; quote"),
        ({"a.jsonl": '\n{"file": "1.mp4"}'}, "line 2: has file, but needs"),
        ({"a.jsonl": "[1]"}, "line 1: has nothing, but needs"),
        ({"a.jsonl": '{"file"'}, "a.jsonl, line 1: is not JSON: "),
        ({"a.jsonl": "[" * 100_000}, "a.jsonl, line 1: is not JSON: "),
        (
            {"a.jsonl": '{"file": "1", "caption": ["a"]}'},
            "line 1: caption is list, but must be text",
        ),
        ({"a.jsonl": r'{"file": "1", "caption": "\ud800"}'}, "line 1: caption is not valid text"),
        ({"a.csv": f"file,caption\n{'x' * 5000},one\n"}, "all 1 files are missing"),
        ({"a.csv": "file,caption\n1.mp4,\ud800\n"}, "a.csv cannot be read: "),
    ],
)
def test_bad_folders_are_explained(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InputError, match=message):
        list_clips(tmp_path)


def test_a_missing_folder_is_explained(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        VideoFolderConfig(tmp_path / "nowhere")


def test_nothing_left_is_explained_when_building(tmp_path):
    write(tmp_path / "in" / "captions.csv", "file,caption\n1.mp4,one\n")
    with pytest.raises(InputError, match="gives no clips: all 1 files are missing"):
        build(tmp_path / "in", tmp_path / "tfds")


@pytest.mark.parametrize("fps", [2.0, 7.5, 25.0])
def test_frames_are_those_shown_at_the_asked_times(record, fps):
    spec = ClipSpec(8, 48, 64, fps)
    for rng in (None, *map(np.random.default_rng, range(8))):
        video = video_folder.read(record, spec, rng)
        assert (video.shape, video.dtype) == ((8, 48, 64, 3), np.uint8)
        found = numbers(video)
        exact = found[0] + np.arange(8) * 25 / fps
        assert np.abs(found - exact).max() <= 1
        if rng is None:
            assert abs(found.mean() - 124.5) <= 1


def test_random_windows_reach_both_ends(record):
    starts = [
        numbers(video_folder.read(record, ClipSpec(8, 48, 64, 1.0), np.random.default_rng(i)))[0]
        for i in range(30)
    ]
    assert min(starts) < 10
    assert max(starts) > 65
    assert max(starts) <= 74


def test_without_a_rate_the_whole_clip_is_spanned(record):
    found = numbers(video_folder.read(record, ClipSpec(4, 48, 64), None))
    np.testing.assert_array_equal(found, [0, 83, 166, 249])
    np.testing.assert_array_equal(
        numbers(video_folder.read(record, ClipSpec(250, 48, 64), None)), range(250)
    )


def test_a_slower_clip_repeats_frames(tmp_path):
    write_clip(tmp_path / "slow.mp4", 10, 5)
    record = {"video": (tmp_path / "slow.mp4").read_bytes()}
    found = numbers(video_folder.read(record, ClipSpec(10, 48, 64, 10.0), None))
    assert set(np.diff(found)) == {0, 1}


def test_the_crop_covers_and_moves_only_in_training(tmp_path):
    # Red grows to the right and green downwards.
    y, x = np.mgrid[:60, :200]
    frame = np.stack([x * 255 / 200, y * 255 / 60, 0 * x], -1).astype(np.uint8)
    write_mp4(tmp_path / "clip.mp4", np.stack([frame] * 4), 4)
    record = {"video": (tmp_path / "clip.mp4").read_bytes()}
    spec = ClipSpec(2, 30, 30, 4.0)
    middle = video_folder.read(record, spec, None).astype(float)
    # 60 x 60 of 60 x 200: all of the height, the middle 30% of the width.
    np.testing.assert_allclose(middle[0, 15, [0, -1], 0] / 255, [0.355, 0.645], atol=0.03)
    np.testing.assert_allclose(middle[0, [0, -1], 15, 1] / 255, [0.01, 0.99], atol=0.03)
    places = []
    for seed in range(20):
        video = video_folder.read(record, spec, np.random.default_rng(seed)).astype(float)
        np.testing.assert_allclose(video[0, 15, -1, 0] - video[0, 15, 0, 0], 74, atol=8)
        np.testing.assert_allclose(video[0], video[1], atol=8)
        places.append(video[0, 15, 0, 0] / 255)
    assert min(places) < 0.15
    assert max(places) > 0.55


def test_unusable_clips_say_why(record):
    cases = {
        "it is too short: 9.96 s, but 14.00 s are needed": (record["video"], 0.5),
        "it cannot be decoded: ": (record["video"][: len(record["video"]) // 2], 2.0),
        "cannot be decoded: Invalid data": (b"not a video", 2.0),
    }
    for message, (data, fps) in cases.items():
        with pytest.raises(UnusableClip, match=message):
            video_folder.read({"video": data}, ClipSpec(8, 40, 64, fps), None)


def test_damage_within_a_clip_is_noticed(record):
    start, end = record["video"].index(b"mdat") + 900, record["video"].index(b"moov")
    reasons = set()
    for place in range(start, end, (end - start) // 20):
        data = bytearray(record["video"])
        data[place : place + 4] = b"\xff" * 4
        with pytest.raises(UnusableClip) as error:
            video_folder.read({"video": bytes(data)}, ClipSpec(250, 48, 64), None)
        reasons.add(str(error.value))
    # Decoders conceal some damage, and then only mark the frame.
    assert "it is damaged" in reasons


def test_damaged_metadata_does_not_matter(record):
    data = record["video"].replace(b"isomiso2", b"iso\xb5iso2")
    video = video_folder.read({"video": data}, ClipSpec(2, 48, 64), None)
    assert list(numbers(video)) == [0, 249]


def test_a_file_cut_short_is_noticed(tmp_path):
    # Matroska says at its start how long it is, and can be read without its end.
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        for _ in range(50):
            frame = av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = (tmp_path / "clip.mkv").read_bytes()
    assert len(video_folder.read({"video": data}, ClipSpec(50, 24, 32), None)) == 50
    with pytest.raises(UnusableClip, match=r"ends at .*, but 4\.90 s are needed"):
        video_folder.read({"video": data[: len(data) * 3 // 4]}, ClipSpec(50, 24, 32), None)


def test_any_size_fits_in_any_other():
    rng = np.random.default_rng(0)
    for width, height, *wanted in [(325, 833, 1535, 386), *rng.integers(1, 99, (200, 4))]:
        image = Image.new("RGB", (int(width), int(height)), (9, 9, 9))
        for place in (np.full(2, 0.5), np.zeros(2), np.ones(2)):
            fitted = decoding._fit(image, ClipSpec(1, *map(int, wanted)), place)
            assert fitted.shape == (*wanted, 3)
            assert (fitted == 9).all()


@pytest.mark.parametrize("values", [(0, 40, 64), (8, 40, -1), (8, 40, 64, 0.0), (8, 40, 64, -1)])
def test_impossible_specs_are_refused(values):
    with pytest.raises(InputError, match="must be"):
        ClipSpec(*values)
