"""Folders of clips with a caption file, read where they are."""

import json
import os

import pytest

from show1_jax.data import clips, files
from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.errors import InputError
from tests.data.videos import opened, write_clip


def split(folder, data_dir):
    """Names and captions of the records of both splits."""
    dataset = opened(folder, data_dir)
    return {
        side: {r["name"].decode(): [c.decode() for c in r["captions"]] for r in dataset.split(side)}
        for side in ("train", "validation")
    }


def build(folder, data_dir):
    """Names and captions of all records."""
    sides = split(folder, data_dir)
    return sides["train"] | sides["validation"]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_webvid_layout(tmp_path):
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

    dataset = opened(folder, tmp_path / "data", {"duration": (1, 1)})
    assert list(dataset.captions()) == ["Two cats, playing", "A dog – running"]
    found = {r["name"]: r for side in ("train", "validation") for r in dataset.split(side)}
    assert set(found) == {b"videos/000001_000050/11.mp4", b"12.mp4"}
    assert clips.read(found[b"12.mp4"], ClipSpec(6, 4, 6), None).shape == (6, 4, 6, 3)
    gone = folder / "videos" / "000051_000100" / "13.mp4"
    assert dataset.warnings == [f"1 of 3 clips are missing and skipped: {gone}"]
    assert dataset.messages == [f"{folder}: duration in 1..1 removes 0 of 2 clips"]


def test_any_folder_with_captions(tmp_path):
    rows = [{"file": "a/1.mp4", "caption": "one"}, {"file": "2.mp4", "caption": "two\n"}]
    as_csv, as_json = tmp_path / "csv", tmp_path / "json"
    write(as_csv / "captions.csv", '\ufefffile,caption\na/1.mp4,one\n2.mp4,"two\n"\n')
    write(as_json / "captions.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    for folder in (as_csv, as_json):
        write(folder / "a" / "1.mp4", "bytes")
        write(folder / "2.mp4", "bytes")
        assert build(folder, tmp_path / "data") == {"a/1.mp4": ["one"], "2.mp4": ["two\n"]}


def test_other_captions_make_another_dataset(tmp_path):
    for name in ("1.mp4", "2.mp4"):
        write(tmp_path / "in" / name, "bytes")
    identities = []
    for caption in ("one", "two", "one"):
        write(tmp_path / "in" / "a.csv", f"file,caption\n1.mp4,{caption}\n2.mp4,x\n")
        dataset = opened(tmp_path / "in", tmp_path / "data")
        assert list(dataset.captions()) == [caption, "x"]
        identities.append(dataset.identity)
    assert identities[0] == identities[2] != identities[1]


def test_all_captions_of_a_file_are_on_one_side(tmp_path):
    folder = tmp_path / "in"
    names = [f"{i}.mp4" for i in range(40)]
    rows = [f"{name},{word} {name}" for word in ("a", "the", "some") for name in names]
    rows += [f"./{name},again {name}" for name in names] + ["link.mp4,the linked 7.mp4"]
    write(folder / "captions.csv", "\n".join(["file,caption", *rows]))
    for name in names:
        write(folder / name, name)
    (folder / "link.mp4").symlink_to("7.mp4")
    sides = split(folder, tmp_path / "data")
    held_out, trained = set(sides["validation"]), set(sides["train"])
    assert len(held_out) == 2
    assert held_out | trained == set(names)
    assert not held_out & trained
    for name, captions in (sides["train"] | sides["validation"]).items():
        expected = [f"a {name}", f"the {name}", f"some {name}", f"again {name}"]
        assert captions == expected + ["the linked 7.mp4"] * (name == "7.mp4")
    # Whatever their order, and where the folder lies.
    write(folder / "captions.csv", "\n".join(["file,caption", *reversed(rows)]))
    moved = folder.rename(tmp_path / "moved")
    again = split(moved, tmp_path / "data")["validation"]
    assert {os.path.basename(name).replace("link", "7") for name in again} == held_out


@pytest.mark.parametrize("count", [2, 3, 30, 100])
def test_a_twentieth_of_the_files_is_for_validation_and_one_at_least(tmp_path, count):
    rows = [f"{i}.mp4,caption" for i in range(count)]
    write(tmp_path / "in" / "a.csv", "\n".join(["file,caption", *rows]))
    for i in range(count):
        write(tmp_path / "in" / f"{i}.mp4", "bytes")
    sides = split(tmp_path / "in", tmp_path / "data")
    assert len(sides["validation"]) == max(1, round(count / 20))
    assert len(sides["train"]) == count - len(sides["validation"])


def test_one_file_is_too_few_however_often_it_is_described(tmp_path):
    write(tmp_path / "in" / "captions.csv", "file,caption\n1.mp4,one\n1.mp4,two\n")
    write(tmp_path / "in" / "1.mp4", "bytes")
    with pytest.raises(InputError, match=r"in has only one clip, .*1\.mp4; add another one"):
        build(tmp_path / "in", tmp_path / "data")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "in" / "captions.csv", "file,caption\n1.mp4,one\n2.mp4,two\n")
    for name in ("1.mp4", "2.mp4"):
        write(tmp_path / "in" / name, "bytes")
    record = opened(tmp_path / "in", tmp_path / "data").split("train")[0]

    def fail(path, flags):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "open", fail)
    with pytest.raises(InputError, match=r"[12]\.mp4 cannot be read: Permission denied"):
        clips.read(record, ClipSpec(1, 4, 6), None)
    monkeypatch.undo()
    for name in ("1.mp4", "2.mp4"):
        (tmp_path / "in" / name).unlink()
    with pytest.raises(UnusableClip, match=r"[12]\.mp4 is missing"):
        clips.read(record, ClipSpec(1, 4, 6), None)


def test_files_may_lie_outside_of_the_folder(tmp_path):
    outside = tmp_path / "outside.mp4"
    write(outside, "bytes")
    write(tmp_path / "in" / "1.mp4", "bytes")
    write(tmp_path / "in" / "a.csv", f"file,caption\n../outside.mp4,one\n{outside},two\n1.mp4,a\n")
    found = build(tmp_path / "in", tmp_path / "data")
    assert found == {"../outside.mp4": ["one", "two"], "1.mp4": ["a"]}


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
        opened(tmp_path, tmp_path / "data")
    assert not list(tmp_path.rglob("index"))


def test_a_missing_folder_is_explained(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        opened(tmp_path / "nowhere", tmp_path / "data")


def test_nothing_left_is_explained_when_building(tmp_path):
    write(tmp_path / "in" / "captions.csv", "file,caption\n1.mp4,one\n")
    with pytest.raises(InputError, match="gives no clips: all 1 files are missing"):
        build(tmp_path / "in", tmp_path / "data")
