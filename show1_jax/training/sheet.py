"""Sheets of samples: what a part makes, beside what it was to make."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAMES = 8  # of each clip, in a picture
MIN_HEIGHT = 96  # of a frame, in pixels
GAP, LINE, MARGIN = 6, 16, 48
LABELS = ("truth", "made")
PAPER, INK = (235, 235, 235), (0, 0, 0)


def picture(truth: np.ndarray, made: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Clips below each other: the caption, frames of the truth, and of what was made.

    Args:
      truth: `(clips, frames, height, width, 3)` uint8.
      made: likewise.
      captions: of each clip.

    Returns:
      `(height, width, 3)` uint8, frames at least 96 pixels high.
    """
    count = truth.shape[1]
    chosen = np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int)
    rows = [
        _page([truth[clip, chosen], made[clip, chosen]], caption)
        for clip, caption in enumerate(captions)
    ]
    return np.concatenate(rows)


def video(truth: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Clips beside each other, the truth above what was made, for each frame.

    Args:
      truth: `(clips, frames, height, width, 3)` uint8.
      made: likewise.

    Returns:
      `(frames, height, width, 3)` uint8.
    """
    pages = [_page([truth[:, at], made[:, at]], "") for at in range(truth.shape[1])]
    return np.stack(pages)


def _page(rows: Sequence[np.ndarray], title: str) -> np.ndarray:
    """Two rows of frames `(columns, height, width, 3)`, each labelled, under a title."""
    columns, height, width, _ = rows[0].shape
    scale = -(-MIN_HEIGHT // height)
    height, width = scale * height, scale * width
    top = LINE if title else 0
    # Even sizes, which video codecs need.
    size = (MARGIN + columns * (width + GAP), top + len(rows) * (height + GAP))
    page = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    draw.text((GAP, 0), title, INK, font)
    for row, (label, frames) in enumerate(zip(LABELS, rows, strict=True)):
        y = top + row * (height + GAP)
        draw.text((GAP, y + height // 2 - LINE // 2), label, INK, font)
        for column, frame in enumerate(frames):
            large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
            page.paste(Image.fromarray(large), (MARGIN + column * (width + GAP), y))
    return np.asarray(page)
