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
    builder, _, _ = data.open_dataset(train)
    return {record["name"].decode() for record in data.open_split(builder, "validation")}


@pytest.mark.slow  # the pipeline's tests skip broken files, too
def test_a_folder_of_clips_trains_although_many_are_broken(clips, checkpoint, tmp_path, caplog):
    folder = shutil.copytree(clips, tmp_path / "clips")
    config = small_config("first_frame", tmp_path / "data", dataset=str(folder))
    config.checkpoint = str(checkpoint)
    kept = validation_names(
        small_config("first_frame", tmp_path / "all", dataset=str(clips)).train.first_frame
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


def test_validation_takes_what_can_be_used(clips, tmp_path):
    train = small_config("vae", tmp_path, dataset=str(clips)).train.vae
    builder, read, captions = data.open_dataset(train)
    assert sorted(captions) == sorted(f"clip number {i}" for i in range(CLIPS))

    def batches(read):
        return data.validation_batches(train, builder, read, ClipSpec(1, 4, 6), None)

    assert [batch["video"].shape for batch in batches(read)] == [(2, 1, 4, 6, 3)]
    names = [record["name"] for record in data.open_split(builder, "validation")]
    broken = names[:1]

    def read_but_one(record, spec, rng):
        if record["name"] in broken:
            raise UnusableClip("it is broken")
        return read(record, spec, rng)

    assert [batch["video"].shape for batch in batches(read_but_one)] == [(1, 1, 4, 6, 3)]
    broken = names
    with pytest.raises(InputError, match="none of the 2 clips can be used"):
        batches(read_but_one)
    train.validation_batch_size = 3  # there are not as many
    assert [batch["video"].shape for batch in batches(read)] == [(2, 1, 4, 6, 3)]
    train.validation_batch_size, train.validation_batches = 1, 2
    assert [batch["video"].shape for batch in batches(read)] == [(1, 1, 4, 6, 3)] * 2


def test_a_folder_of_few_clips_validates_on_one(clips, tmp_path):
    folder = shutil.copytree(clips, tmp_path / "clips")
    (folder / "captions.csv").write_text("file,caption\n0.mp4,one\n1.mp4,two\n9999.mp4,gone\n")
    train = small_config("vae", tmp_path, dataset=str(folder)).train.vae
    builder, _, captions = data.open_dataset(train)
    # What was there when the dataset was built may be gone now.
    assert list(captions) == ["one", "two", "gone"]
    for name in ("train", "validation"):
        assert len(data.open_split(builder, name)) == 1


def test_training_and_validation_share_no_file_of_two_captions(clips, tmp_path):
    folder = shutil.copytree(clips, tmp_path / "clips")
    rows = [f"{i}.mp4,clip {i} {word}" for word in ("once", "again") for i in range(3)]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    train = small_config("vae", tmp_path, dataset=str(folder), batch_size=4).train.vae
    train.validation_batch_size = 2
    builder, read, _ = data.open_dataset(train)
    spec = ClipSpec(1, 4, 6)

    def files(batches):
        return {caption.split()[1] for batch in batches for caption in batch["caption"]}

    (held_out,) = files(data.validation_batches(train, builder, read, spec, None))
    iterator = data.training_batches(train, builder, read, spec, None)
    trained = files(next(iterator) for _ in range(3))
    assert trained == {"0", "1", "2"} - {held_out}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", b"{}{"),
        ("dataset_info.json", b"\xff"),
        ("dataset_info.json", None),
        ("*validation.array_record*", b"no records"),
        ("*validation.array_record*", None),
    ],
)
def test_a_damaged_dataset_is_named(built, clips, tmp_path, name, content):
    train = small_config("vae", shutil.copytree(built, tmp_path / "data"), dataset=str(clips))
    (path,) = (tmp_path / "data").glob(f"video_folder/*/*/{name}")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"video_folder/.* is damaged.*remove it, and it will be built"
    ):
        validation_names(train.train.vae)


@pytest.fixture(scope="module")
def built(clips, tmp_path_factory):
    """Where the dataset of the clips is."""
    folder = tmp_path_factory.mktemp("built")
    validation_names(small_config("vae", folder, dataset=str(clips)).train.vae)
    return folder


def test_a_caption_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "captions.csv").symlink_to("nowhere")
    train = small_config("vae", tmp_path / "data", dataset=str(tmp_path)).train.vae
    with pytest.raises(InputError, match=r"captions\.csv cannot be read: No such file"):
        data.open_dataset(train)


def test_parameters_have_the_fingerprint_of_their_values():
    params = {"b": {"kernel": jnp.ones((2, 3))}, "a": {"bias": jnp.ones(3)}}
    same = data.params_fingerprint(params)
    assert data.params_fingerprint(dict(reversed(jax.tree.map(np.array, params).items()))) == same
    assert data.params_fingerprint(params | {"a": {"bias": jnp.zeros(3)}}) != same
    assert data.params_fingerprint(params | {"a": {"scale": jnp.ones(3)}}) != same
