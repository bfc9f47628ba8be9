"""Folders of results that were damaged since they were written."""

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
