"""Tokenizers against ids of transformers 4.29's Python tokenizers.

`recorded_ids.json` holds ids (without padding) that its T5Tokenizer and
CLIPTokenizer, with sentencepiece and ftfy installed, gave with the tiny
released-layout tokenizers.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from safetensors.numpy import load_file

from show1_jax.errors import InputError
from show1_jax.text.tokenizers import clip_tokenizer, t5_tokenizer
from tests.conftest import RELEASE

RECORDED = json.loads((Path(__file__).parent / "recorded_ids.json").read_text())
PROMPTS = json.loads((RELEASE / "expected_text_prompts.json").read_text())
T5_FOLDERS = [RELEASE / f"show-1-{name}/tokenizer" for name in ("base", "interpolation", "sr1")]
CLIP_FOLDER = RELEASE / "show-1-sr2/tokenizer"


@pytest.fixture(scope="module")
def t5():
    return t5_tokenizer(T5_FOLDERS[0])


@pytest.fixture(scope="module")
def clip():
    return clip_tokenizer(CLIP_FOLDER)


@pytest.fixture(scope="module")
def expected():
    return load_file(RELEASE / "expected_text.safetensors")


@pytest.mark.parametrize("folder", T5_FOLDERS, ids=lambda folder: folder.parent.name)
def test_t5_ids_of_the_release(folder, expected):
    tokens = t5_tokenizer(folder)(PROMPTS)
    np.testing.assert_array_equal(tokens.input_ids, expected["t5.input_ids"])
    np.testing.assert_array_equal(tokens.attention_mask, expected["t5.attention_mask"])
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int32


def test_clip_ids_of_the_release(clip, expected):
    tokens = clip(PROMPTS)
    np.testing.assert_array_equal(tokens.input_ids, expected["clip.input_ids"])
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int32


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_ids_of_the_original_tokenizers(name, request):
    tokens = request.getfixturevalue(name)([case["prompt"] for case in RECORDED])
    for case, ids, mask in zip(RECORDED, *tokens, strict=True):
        used = len(case[name])
        assert ids[:used].tolist() == case[name], ascii(case["prompt"])
        assert mask.tolist() == [1] * used + [0] * (77 - used), ascii(case["prompt"])


def test_clip_repairs_to_an_exclamation_mark_not_to_padding(clip):
    # The padding token of the released tokenizer is "!", which a prompt may hold too.
    assert clip(["!"]).input_ids[0, 1] == 0
    assert clip(["\uff01"]).input_ids[0, 1] == 256


def test_t5_sentinels_follow_the_vocabulary_backwards(tmp_path):
    shutil.copytree(T5_FOLDERS[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "extra_ids": 100}))
    ids = t5_tokenizer(tmp_path)(["<extra_id_0> a <extra_id_99>"]).input_ids[0]
    assert ids[:5].tolist() == [185, 3, 4, 86, 1]


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_long_prompts_are_cut_with_one_warning(name, request, monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    tokenizer = request.getfixturevalue(name)
    prompt = "a large red circle " * 250
    for _ in range(2):
        tokens = tokenizer(["a red circle", prompt])
    assert tokens.input_ids.shape == (2, 77)
    assert tokens.attention_mask[1].all()
    assert len(messages) == 1
    assert "'a large red circle a large red circle a ..." in messages[0]
    ends = {"t5": 1, "clip": 742}
    assert tokens.input_ids[1, -1] == ends[name]


def test_reports_how_many_tokens_are_cut(t5, monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    prompt = "blue " * 60
    total = int(t5_tokenizer(T5_FOLDERS[0], 1000)([prompt]).attention_mask.sum()) - 1
    assert total > 76
    t5([prompt])
    assert messages[0].startswith(
        f"Cut the last {total - 76} of {total} tokens of the prompt 'blue "
    )


@pytest.mark.parametrize(
    ("load", "folder", "name"),
    [
        (t5_tokenizer, T5_FOLDERS[0], "spiece.model"),
        (t5_tokenizer, T5_FOLDERS[0], "tokenizer_config.json"),
        (clip_tokenizer, CLIP_FOLDER, "vocab.json"),
        (clip_tokenizer, CLIP_FOLDER, "merges.txt"),
        (clip_tokenizer, CLIP_FOLDER, "special_tokens_map.json"),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_files_are_refused(load, folder, name, damage, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / name).read_bytes()
    damaged = {
        "truncated": content[: len(content) // 2],
        "garbage": b"\x00garbage\xff",
        "empty": b"",
    }
    (tmp_path / name).write_bytes(damaged[damage])
    with pytest.raises(InputError, match=str(tmp_path)) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("load", "folder", "name"),
    [
        (t5_tokenizer, T5_FOLDERS[0], "spiece.model"),
        (clip_tokenizer, CLIP_FOLDER, "vocab.json"),
        (clip_tokenizer, CLIP_FOLDER, "merges.txt"),
    ],
)
def test_missing_files_are_named(load, folder, name, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=name):
        load(tmp_path)
    with pytest.raises(InputError, match="no tokenizer"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"extra_ids": float("inf")},
        {"extra_ids": "a"},
        {"extra_ids": [1]},
        {"extra_ids": 10**9},
        {"extra_ids": -1},
        {"eos_token": {}},
        {"eos_token": "\ud800"},
        {"eos_token": ["</s>"]},
        {"pad_token": "<unk>"},
    ],
)
def test_settings_that_no_tokenizer_has_are_refused(change, tmp_path):
    shutil.copytree(T5_FOLDERS[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(change))
    (tmp_path / "special_tokens_map.json").unlink()
    with pytest.raises(InputError, match=next(iter(change))):
        t5_tokenizer(tmp_path)


def test_settings_nested_too_deeply_are_refused(tmp_path):
    shutil.copytree(T5_FOLDERS[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not readable as JSON"):
        t5_tokenizer(tmp_path)
