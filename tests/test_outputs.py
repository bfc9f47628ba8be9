"""Folders of results that were damaged since they were written."""

import json

import numpy as np
import pytest

from show1_jax.errors import InputError
from show1_jax.outputs import Outputs


def test_damaged_files_are_named(tmp_path):
    outputs = Outputs(tmp_path)
    outputs.begin(["a red circle"], [0])
    head = b"{".ljust(117) + b"\n"  # NumPy's header, cut off
    content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    (tmp_path / "000" / "keyframes.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"keyframes\.npy cannot be read"):
        outputs.load(0, "keyframes")
    (tmp_path / "000" / "metadata.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"metadata\.json cannot be read: it is nested"):
        Outputs(tmp_path).made_stages(0)
    (tmp_path / "items.jsonl").write_text('{"prompt": "a red circle"}\n')
    with pytest.raises(InputError, match=r"items\.jsonl cannot be read: 'seed'"):
        Outputs(tmp_path).items()


def test_no_folder_has_more_than_a_thousand_items(tmp_path):
    outputs = Outputs(tmp_path)
    outputs.begin(["a red circle"] * 2001, [0] * 2001, own=[999, 1000, 2000])
    folders = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("metadata.json")}
    assert folders == {"999", "1000-1999/1000", "2000-2999/2000"}
    again = Outputs(tmp_path)
    assert again.items() == [("a red circle", 0)] * 2001
    again.begin(["a red circle"] * 2001, [0] * 2001, own=[1000])
    assert not again.manifest.exists()


def test_what_was_not_noted_is_noted_later(tmp_path):
    outputs = Outputs(tmp_path)
    outputs.begin(["a red circle"], [0])
    outputs.save(0, "keyframes", np.zeros((2, 4, 6, 3), np.float32), {"fps": 2})
    with open(outputs.manifest, "r+b") as file:
        file.truncate(10)  # killed while it was written
    Outputs(tmp_path).begin(["a red circle"], [0])
    first, second = outputs.manifest.read_text().splitlines()
    assert first == '{"item": 0'
    assert json.loads(second)["stage"] == "keyframes"


def test_results_of_another_folder_are_taken(tmp_path):
    frames = np.zeros((2, 4, 6, 3), np.float32)
    source, own = Outputs(tmp_path / "source"), Outputs(tmp_path / "own")
    for each in (source, own):
        each.begin(["a red circle"], [0])
    source.save(0, "keyframes", frames, {"fps": 2, "steps": 3})
    own.take(source, ["keyframes"])
    assert own.made_stages(0) == ["keyframes"]
    assert own.done(0, "keyframes", {"fps": 2, "steps": 3})
    assert all(path.is_file() for path in own.shown(0, "keyframes"))
    assert '"keyframes"' in (tmp_path / "own" / "manifest.jsonl").read_text()
    with pytest.raises(InputError, match="has no result of interpolation"):
        own.take(source, ["interpolation"])
    assert Outputs(tmp_path / "none").made_stages(0) == []
