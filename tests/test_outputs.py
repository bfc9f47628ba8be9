"""Folders of results that were damaged since they were written."""

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
        Outputs(tmp_path).items()


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
