import contextlib
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.errors import InputError
from show1_jax.training import data, loop
from tests.data.videos import write_clip
from tests.training.small import small_config

CLIPS = 40


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of captioned clips of 3 seconds."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(CLIPS):
        write_clip(folder / f"{i}.mp4", 30, 10, height=16, width=32)
    rows = [f"{i}.mp4,clip number {i}" for i in range(CLIPS)]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    return folder


def validation_names(train):
    (source,) = data.open_dataset(train).split("validation")
    return {record["name"].decode() for record in source.records}


@pytest.mark.slow  # the pipeline's tests skip broken files, too
def test_a_folder_of_clips_trains_although_many_are_broken(clips, checkpoint, tmp_path, caplog):
    folder = shutil.copytree(clips, tmp_path / "clips")
    config = small_config("first_frame", tmp_path / "data", dataset=(str(folder),))
    config.checkpoint = str(checkpoint)
    kept = validation_names(
        small_config("first_frame", tmp_path / "all", dataset=(str(clips),)).train.first_frame
    )
    for path in sorted(folder.glob("*.mp4"))[::2]:
        if path.name not in kept:
            path.write_bytes(path.read_bytes()[:-1000])
    loop.train(config, tmp_path / "run")
    assert re.search(r"skipped clip \d+.mp4: it cannot be decoded", caplog.text)
    log = (tmp_path / "run" / "first_frame" / "metrics.jsonl").read_text()
    losses = [json.loads(line).get("loss", 0) for line in log.splitlines()]
    assert np.isfinite(losses).all()
    assert len(losses) == 3


def test_validation_takes_what_can_be_used(clips, tmp_path, monkeypatch):
    train = small_config("vae", tmp_path, dataset=(str(clips),)).train.vae
    dataset = data.open_dataset(train)
    assert sorted(dataset.captions()) == sorted(f"clip number {i}" for i in range(CLIPS))
    names = [record["name"] for record in dataset.split("validation")[0].records]
    broken = []

    def read_but_some(record, spec, rng):
        if record["name"] in broken:
            raise UnusableClip("it is broken")
        return read(record, spec, rng)

    read = data.clips.read
    monkeypatch.setattr(data.clips, "read", read_but_some)

    def shapes():
        batches = data.validation_batches(train, dataset, ClipSpec(1, 4, 6), None)
        return [batch["video"].shape for batch in batches]

    assert shapes() == [(2, 1, 4, 6, 3)]
    broken = names[:1]
    assert shapes() == [(1, 1, 4, 6, 3)]
    broken = names
    with pytest.raises(InputError, match="none of the 2 clips can be used"):
        shapes()
    broken = []
    train.validation_batch_size = 3  # there are not as many
    assert shapes() == [(2, 1, 4, 6, 3)]
    train.validation_batch_size, train.validation_batches = 1, 2
    assert shapes() == [(1, 1, 4, 6, 3)] * 2


def test_a_folder_of_few_clips_validates_on_one(clips, tmp_path, caplog):
    folder = shutil.copytree(clips, tmp_path / "clips")
    (folder / "captions.csv").write_text("file,caption\n0.mp4,one\n1.mp4,two\n9999.mp4,gone\n")
    train = small_config("vae", tmp_path, dataset=(str(folder),)).train.vae
    dataset = data.open_dataset(train)
    assert list(dataset.captions()) == ["one", "two"]
    for name in ("train", "validation"):
        assert len(dataset.split(name)[0].records) == 1
    assert "1 of 3 clips are missing and skipped" in caplog.text


def test_training_and_validation_share_no_file_of_two_captions(clips, tmp_path):
    folder = shutil.copytree(clips, tmp_path / "clips")
    rows = [f"{i}.mp4,clip {i} {word}" for word in ("once", "again") for i in range(3)]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    train = small_config("vae", tmp_path, dataset=(str(folder),), batch_size=4).train.vae
    train.validation_batch_size = 2
    dataset = data.open_dataset(train)
    spec = ClipSpec(1, 4, 6)

    def files(batches):
        return {caption.split()[1] for batch in batches for caption in batch["caption"]}

    (held_out,) = files(data.validation_batches(train, dataset, spec, None))
    iterator = data.training_batches(train, dataset, spec, None)
    trained = files(next(iterator) for _ in range(3))
    assert trained == {"0", "1", "2"} - {held_out}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_index_is_named(clips, tmp_path, damage):
    train = small_config("vae", tmp_path, dataset=(str(clips),)).train.vae
    validation_names(train)
    (path,) = tmp_path.glob("clips/*/index")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[damage])
    with pytest.raises(InputError, match=r"index is damaged: .*; remove it, and it is built again"):
        validation_names(train)


def test_damaged_shapes_are_named(tmp_path):
    train = small_config("vae", tmp_path).train.vae
    data.open_dataset(train)
    damages = {
        "dataset_info.json": (b"{}{", b"\xff", None),
        "*validation.array_record*": (b"no records", None),
    }
    for name, contents in damages.items():
        (path,) = tmp_path.glob(f"moving_shapes/*/*/{name}")
        good = path.read_bytes()
        for content in contents:
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(InputError, match=r"moving_shapes/.* is damaged.*remove it, and it"):
                validation_names(train)
            path.write_bytes(good)


def test_datasets_are_mixed(clips, tmp_path):
    names = ("moving_shapes=3", str(clips))
    train = small_config("vae", tmp_path, dataset=names, batch_size=4).train.vae
    dataset = data.open_dataset(train)
    assert re.fullmatch(r"moving_shapes/\S+=3, \w{16}=1", dataset.name)
    batches = data.training_batches(train, dataset, ClipSpec(1, 4, 6), None)
    with contextlib.closing(batches) as found:
        captions = [str(caption) for _ in range(3) for caption in next(found)["caption"]]
    assert sum(text.startswith("clip number") for text in captions) == 3
    for wrong, message in (
        ((), "train.dataset names no dataset"),
        (("a=b",), "dataset 'a=b': 'b' is not a weight"),
        (("a=0",), "dataset 'a=0': '0' is not a weight"),
        (("",), "datasets are PATH or PATH=WEIGHT, not ''"),
    ):
        train.dataset = wrong
        with pytest.raises(InputError, match=message):
            data.open_dataset(train)


def test_a_caption_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "captions.csv").symlink_to("nowhere")
    train = small_config("vae", tmp_path / "data", dataset=(str(tmp_path),)).train.vae
    with pytest.raises(InputError, match=r"captions\.csv cannot be read: No such file"):
        data.open_dataset(train)


def test_parameters_have_the_fingerprint_of_their_values():
    params = {"b": {"kernel": jnp.ones((2, 3))}, "a": {"bias": jnp.ones(3)}}
    same = data.params_fingerprint(params)
    assert data.params_fingerprint(dict(reversed(jax.tree.map(np.array, params).items()))) == same
    assert data.params_fingerprint(params | {"a": {"bias": jnp.zeros(3)}}) != same
    assert data.params_fingerprint(params | {"a": {"scale": jnp.ones(3)}}) != same
