"""Videos of a sampling become shards that training reads."""

import json
import tarfile

import numpy as np
import pytest

from show1_jax import pack
from show1_jax.errors import InputError
from show1_jax.generate import merge_shards
from show1_jax.outputs import Outputs
from tests.data.test_shards import content, records
from tests.data.videos import opened

PROMPTS = [f"a red circle number {number}" for number in range(5)]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """A folder with a keyframe clip of each prompt."""
    monkeypatch.setattr(pack, "ITEMS", 2)
    outputs = Outputs(tmp_path / "out")
    outputs.begin(PROMPTS, list(range(5)))
    for item in range(5):
        frames = np.full((2, 16, 16, 3), item / 5, np.float32)
        outputs.save(item, "keyframes", frames, {"fps": 2})
    return outputs


def test_every_item_is_in_a_shard_that_training_reads(outputs, tmp_path):
    text = merge_shards(outputs.folder, webdataset=True)
    folder = outputs.folder / "shards"
    assert text == f"5 item(s) in {outputs.folder} are complete: keyframes; packed in {folder}"
    assert sorted(path.name for path in folder.iterdir()) == [f"0000{n}.tar" for n in range(3)]
    with tarfile.open(folder / "00001.tar") as shard:
        names = [f"00000000{item}.{ending}" for item in (2, 3) for ending in ("mp4", "txt", "json")]
        assert shard.getnames() == names
        about = json.loads(shard.extractfile("000000003.json").read())
    assert about == {"caption": PROMPTS[3], "seed": 3, "stage": "keyframes"}
    found = records(opened(folder, tmp_path / "data"))
    assert sorted(found) == PROMPTS
    for item, prompt in enumerate(PROMPTS):
        assert content(found[prompt]) == outputs.shown(item, "keyframes")[0].read_bytes()
    before = (folder / "00000.tar").read_bytes()
    merge_shards(outputs.folder, webdataset=True)
    assert (folder / "00000.tar").read_bytes() == before


def test_what_is_missing_is_not_packed(outputs):
    clip = outputs.shown(4, "keyframes")[0]
    clip.unlink()
    with pytest.raises(InputError, match=f"^{clip} cannot be packed: No such file"):
        merge_shards(outputs.folder, webdataset=True)
    assert [path.name for path in outputs.folder.glob("shards/*.tar")] == ["00000.tar", "00001.tar"]
    outputs._exact(4, "keyframes").unlink()
    with pytest.raises(InputError, match=r"1 of 5 item.* lack results: 4"):
        merge_shards(outputs.folder, webdataset=True)
