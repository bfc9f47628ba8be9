"""PyTorch weight files in every format: the same tensors, whichever holds them."""

import json
import os
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from show1_jax.checkpoints.torch_files import find_weights, read_header, read_metadata
from show1_jax.checkpoints.torch_writer import write_file
from show1_jax.convert import load_diffusers
from show1_jax.errors import InputError
from tests.checkpoints.weights import (
    network_copy,
    read_file,
    read_tensors,
    same_params,
    same_tensor,
    write_sharded,
    write_tensors,
)
from tests.conftest import RELEASE, loaded

CLIP_FOLDER = RELEASE / "show-1-sr2/text_encoder"


@pytest.fixture(scope="module")
def tensors():
    return read_tensors(CLIP_FOLDER)


@pytest.fixture
def folder(tmp_path):
    return network_copy(tmp_path / "clip", "show-1-sr2/text_encoder")


def equals_release(folder) -> bool:
    _, params = load_diffusers(folder)
    return same_params(flatten_dict(params), flatten_dict(loaded(CLIP_FOLDER)[1]))


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
        "pytorch_model.bin",
        "diffusion_pytorch_model.bin",
        "model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.bin",
        "pytorch_model.fp16.bin",
    ],
)
def test_one_file(folder, tensors, name):
    write_tensors(folder / name, tensors)
    found = find_weights(folder)
    assert found.index is None
    assert {stored.file.name for stored in found.tensors.values()} == {name}
    assert equals_release(folder)


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize(
    ("stem", "kind"),
    [("model", "safetensors"), ("pytorch_model", "bin"), ("diffusion_pytorch_model", "bin")],
)
def test_shards(folder, tensors, stem, kind, variant):
    write_sharded(folder, stem, kind, tensors, variant)
    found = find_weights(folder)
    assert found.index is not None
    assert list(found.tensors) == list(tensors)
    assert len({stored.file for stored in found.tensors.values()}) == 2
    assert equals_release(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_bfloat16(folder, tensors, name):
    key = "text_model.embeddings.position_ids"
    half = {k: v if k == key else v.to(torch.bfloat16) for k, v in tensors.items()}
    write_tensors(folder / name, half)
    _, params = load_diffusers(folder)
    for path, value in flatten_dict(loaded(CLIP_FOLDER)[1]).items():
        mine = flatten_dict(params)[path]
        assert mine.dtype == "bfloat16"
        np.testing.assert_array_equal(mine, value.astype("bfloat16"))


def test_the_full_precision_is_preferred(folder, tensors):
    order = [
        "model.safetensors",
        "pytorch_model.bin",
        "model.fp16.safetensors",
        "pytorch_model.fp16.bin",
    ]
    for name in reversed(order):
        write_tensors(folder / name, tensors)
        assert {stored.file.name for stored in find_weights(folder).tensors.values()} == {name}


def test_tensors_that_share_a_storage_are_told_apart(tmp_path):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    file = tmp_path / "weights.bin"
    torch.save({"a": whole[1:3], "b": whole, "c": whole[3]}, file)
    stored = read_header(file)
    for key, expected in (("a", whole[1:3]), ("b", whole), ("c", whole[3])):
        np.testing.assert_array_equal(stored[key].read(), expected.numpy())


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_files_that_we_write_are_read_by_pytorch(tmp_path, tensors, name):
    made = {
        "half": tensors["text_model.final_layer_norm.weight"],
        "single": torch.randn(3, 4),
        "brain": torch.randn(2, 3).to(torch.bfloat16),
        "integers": torch.arange(5)[None],
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(1.5),
    }
    (tmp_path / "theirs").mkdir()
    write_tensors(tmp_path / "theirs" / name, made)
    ours = ((key, stored.read()) for key, stored in read_header(tmp_path / "theirs" / name).items())
    (tmp_path / "ours").mkdir()
    write_file(tmp_path / "ours" / name, ours)
    back = read_tensors(tmp_path / "ours")
    assert back.keys() == made.keys()
    for key, expected in made.items():
        assert same_tensor(back[key], expected), key


def test_a_bin_that_we_write_is_a_sound_zip_file(tmp_path, tensors):
    write_file(tmp_path / "weights.bin", ((key, value.numpy()) for key, value in tensors.items()))
    with zipfile.ZipFile(tmp_path / "weights.bin") as archive:
        assert archive.testzip() is None


def test_a_bin_stores_an_array_given_twice_once(tmp_path):
    array = np.zeros(10_000, np.float32)
    write_file(tmp_path / "once.bin", [("a", array), ("b", array)])
    assert (tmp_path / "once.bin").stat().st_size < 60_000
    state = torch.load(tmp_path / "once.bin", weights_only=True)
    assert state["a"].data_ptr() == state["b"].data_ptr()


# --- what cannot be read ------------------------------------------------------


def message(folder) -> str:
    with pytest.raises(InputError) as error:
        load_diffusers(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_weights(folder):
    assert "has no weights; looked for diffusion_pytorch_model, model" in message(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_truncated_file(folder, tensors, name, part):
    write_tensors(folder / name, tensors)
    file = folder / name
    os.truncate(file, int(file.stat().st_size * part))
    text = message(folder)
    assert str(file) in text
    assert "truncated" in text or "damaged" in text


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_missing_shard(folder, tensors, kind):
    write_sharded(folder, "model", kind, tensors)
    (folder / f"model-00002-of-00002.{kind}").unlink()
    text = message(folder)
    assert f"model-00002-of-00002.{kind} is missing, but model.{kind}.index.json names it" in text


def test_index_that_makes_no_sense(folder, tensors):
    write_sharded(folder, "model", "safetensors", tensors)
    file = folder / "model.safetensors.index.json"
    file.write_text("{}")
    assert "has no weight_map" in message(folder)
    file.write_text("{")
    assert "cannot be read as JSON" in message(folder)


def test_what_shards_hold_counts_and_not_what_their_index_says(folder, tensors):
    write_sharded(folder, "model", "safetensors", tensors)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    key = "text_model.final_layer_norm.bias"
    index["weight_map"][key] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    assert equals_release(folder)
    index["weight_map"]["novelty"] = index["weight_map"].pop(key)
    file.write_text(json.dumps(index))
    assert equals_release(folder)
    shard = folder / "model-00002-of-00002.safetensors"
    write_tensors(shard, {k: v for k, v in read_file(shard).items() if k != key})
    assert f"missing: {key}" in message(folder)


def test_an_index_without_its_shards_is_passed_over(folder, tensors):
    write_sharded(folder, "model", "safetensors", tensors)
    for shard in folder.glob("*-of-*"):
        shard.unlink()
    write_tensors(folder / "model.fp16.safetensors", tensors)
    assert equals_release(folder)


def test_safetensors_of_unknown_dtype(folder):
    write_tensors(folder / "model.safetensors", {"a": torch.zeros(3, dtype=torch.bool)})
    assert "BOOL" in message(folder)


def test_safetensors_with_a_broken_header(folder):
    file = folder / "model.safetensors"
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for header in (
        [],
        {"a": 1},
        {"a": {}},
        {"a": entry | {"data_offsets": []}},
        {"a": entry | {"data_offsets": [0, 4]}},
        {"a": entry | {"data_offsets": [-8, 0]}},
        {"a": entry | {"shape": [-2]}},
        {"a": entry | {"shape": "2"}},
    ):
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        assert str(file) in message(folder), header


SMALL = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [[2]], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": {"2": 1}, "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [9223372036854775807, 8], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [%s2], "data_offsets": [0, 8]}}' % ("1, " * 70),
        '{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8.0]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [false, 8]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}',
        '{"a": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}, "b": 3}',
        f'{{"a": {SMALL}, "b": {SMALL}}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        f'{{"a": {SMALL}, "a": {SMALL}}}',
        f'{{"a\\nb": {SMALL}}}',
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": ' * 100_000 + "1" + "}" * 100_000,
    ],
    ids=["negative", "float", "bool", "nested", "object", "huge", "many", "dtype list",
         "float offsets", "bool offsets", "three offsets", "number", "overlap", "hole before",
         "bytes behind", "duplicate", "key of two lines", "deep list", "deep object"],
)  # fmt: skip
def test_safetensors_with_a_header_that_makes_no_sense(folder, header):
    text = header.encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert f"{file} is not a safetensors file, or is damaged: " in message(folder)


def test_safetensors_with_metadata_that_is_no_text(tmp_path):
    text = b'{"__metadata__": {"format": 3}}'
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    assert read_header(file) == {}
    with pytest.raises(InputError, match="the metadata is not an object of strings"):
        read_metadata(file)


def test_json_that_is_nested_too_deeply(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 100_000)
    assert "cannot be read as JSON" in message(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/tmp/model.bin", "a/b.bin", "..", "model.txt", "", 3, None]
)
def test_shards_are_beside_their_index(folder, tensors, name):
    write_tensors(folder.parent / "model.safetensors", tensors)
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"has the shard name {name!r}, but names must be plain" in message(folder)


@pytest.mark.parametrize(
    "state",
    [
        {"a": torch.zeros(3, dtype=torch.complex64)},
        {"a": {"b": torch.zeros(3)}},
        {"a": 3},
        [torch.zeros(3)],
        torch.zeros(3),
        {3: torch.zeros(3)},
        {"a\nb": torch.zeros(3)},
        {"a": torch.eye(3).to_sparse()},
        {"a": torch.zeros(3, dtype=torch.complex64).conj().imag},
    ],
    ids=["complex", "nested", "number", "list", "tensor", "key", "two lines", "sparse", "negated"],
)
def test_bin_of_something_else(folder, state):
    torch.save(state, folder / "pytorch_model.bin")
    assert str(folder / "pytorch_model.bin") in message(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bin(folder, zipped):
    file = folder / "pytorch_model.bin"
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=zipped)
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for i in rng.integers(0, 300, 3):
            damaged[i] = rng.integers(256)
        file.write_bytes(damaged)
        # It is read all the same where the damage is in its padding.
        assert str(folder) in message(folder)


def test_bin_that_is_not_stored_plainly(folder):
    torch.save({"a": torch.zeros(3, 4).T}, folder / "pytorch_model.bin")
    assert "a is not stored contiguously; save the state dict again" in message(folder)
    torch.save(
        {"a": torch.zeros(3)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    assert "save the state dict again" in message(folder)


class Malicious:
    """What a hostile checkpoint holds: unpickling it makes a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["pickle", "zip", "old"])
def test_a_malicious_pickle_is_not_executed(folder, tmp_path, form):
    target = tmp_path / "executed"
    state = {"a": torch.zeros(3), "b": Malicious(target)}
    file = folder / "pytorch_model.bin"
    if form == "pickle":
        file.write_bytes(pickle.dumps(state["b"]))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    text = message(folder)
    assert "has objects other than tensors, or is damaged, and was not unpickled" in text
    assert not target.exists()
    # And it would have been.
    pickle.loads(pickle.dumps(Malicious(target)))
    assert target.exists()


def test_without_torch_the_extra_is_named(folder, tensors, monkeypatch):
    shutil.copy(CLIP_FOLDER / "pytorch_model.bin", folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'show1-jax[convert]', or use a .safetensors file" in message(folder)
    monkeypatch.undo()
    write_tensors(folder / "model.safetensors", tensors)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert equals_release(folder)
