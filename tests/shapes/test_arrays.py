"""Results of the evaluation that were damaged since they were kept."""

import numpy as np
import pytest

from show1_jax.errors import InputError
from show1_jax.shapes.arrays import Arrays


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"{}", b'[["a", 1]]'])
def test_a_damaged_list_of_items_is_refused(content, tmp_path):
    (tmp_path / "items.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"items\.json cannot be used|has results of other prompts"
    ):
        Arrays(tmp_path).begin(["a red circle"], [0])


@pytest.mark.parametrize(
    "result",
    [
        np.full((2, 4, 6, 3), "text"),
        np.zeros((2, 4, 6, 1), np.float32),
        np.zeros(3, np.float32),
        np.zeros((0, 4, 6, 3), np.float32),
        np.full((2, 4, 6, 3), np.nan, np.float32),
        np.zeros((2, 4, 6, 3), np.complex64),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_what_is_no_video_is_refused(result, tmp_path):
    np.save(tmp_path / "000-keyframes.npy", result)
    with pytest.raises(InputError, match=r"keyframes\.npy has"):
        Arrays(tmp_path).load(0, "keyframes")


def test_a_file_cut_off_within_its_header_is_refused(tmp_path):
    head = b"{".ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    (tmp_path / "000-keyframes.npy").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        Arrays(tmp_path).load(0, "keyframes")
