"""Contact sheets: clips with their prompts and verdicts."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from show1_jax.media import resize_uint8
from show1_jax.shapes.scenes import Combination, difference

FRAMES = 6  # of each clip
HEIGHT = 96  # of each frame, in pixels
GAP = 6
TEXT = 16
RIGHT, WRONG = (0, 110, 0), (180, 0, 0)


class Row(NamedTuple):
    """A clip, `(frames, height, width, 3)` uint8, with its prompt and the verdict on it."""

    video: np.ndarray
    prompt: str
    right: bool
    verdict: str


def verdict(seen: Combination, asked: Combination) -> tuple[bool, str]:
    """Returns whether all attributes are right, and a line that names those that are not."""
    wrong = difference(seen, asked)
    if not wrong:
        return True, "right"
    return False, "seen: " + ", ".join(f"{name} {getattr(seen, name)}" for name in wrong)


def contact_sheet(rows: list[Row]) -> np.ndarray:
    """Draws rows, with all clips as wide as the first one: `(height, width, 3)` uint8."""
    height, width = rows[0].video.shape[1:3]
    width = round(HEIGHT * width / height)
    step = HEIGHT + 2 * TEXT + 2 * GAP
    size = (FRAMES * (width + GAP) + GAP, len(rows) * step + GAP)
    sheet = Image.new("RGB", size, (235, 235, 235))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index, row in enumerate(rows):
        top = GAP + index * step
        draw.text((GAP, top), row.prompt, (0, 0, 0), font)
        draw.text((GAP, top + TEXT), row.verdict, RIGHT if row.right else WRONG, font)
        chosen = np.linspace(0, len(row.video) - 1, min(FRAMES, len(row.video))).round().astype(int)
        for column, frame in enumerate(resize_uint8(row.video[chosen], HEIGHT, width)):
            place = (GAP + column * (width + GAP), top + 2 * TEXT)
            sheet.paste(Image.fromarray(frame), place)
    return np.asarray(sheet)
