r"""Draws what every stage of the cascade made of one prompt, side by side, as a moving picture.

    python sample.py \
        --prompt "a large red triangle moving down and to the right on a white background"
    python examples/stages.py outputs/000 docs/stages.gif

The first command writes the folder outputs/000, the second reads it. The picture needs nothing
but Pillow, NumPy and PyAV, which show1_jax installs.
"""

import argparse
import json
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

STAGES = ("keyframes", "interpolation", "first_frame", "super_resolution", "translation")
HEIGHT = 96  # of each stage's picture, in pixels
GAP = 8
LABEL = 30  # two lines of text
PAPER, INK, PALE = (226, 230, 235), (31, 35, 40), (89, 99, 110)
FONT = ImageFont.load_default(size=11)


def read_stage(item: Path, stage: str) -> np.ndarray:
    """The frames of a stage, `(frames, height, width, 3)` uint8.

    Args:
      item: a folder that `sample.py` wrote, such as outputs/000.
      stage: one of `STAGES`.
    """
    exact = item / f"{stage}.npy"
    if not exact.exists():  # the last stage is kept as a video alone
        with av.open(str(item / f"{stage}.mp4")) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode()])
    frames = np.load(exact)
    if frames.dtype != np.uint8:
        frames = ((np.clip(frames.astype(np.float32), -1, 1) + 1) / 2 * 255).astype(np.uint8)
    return frames.reshape(-1, *frames.shape[-3:])


def draw(videos: dict[str, np.ndarray], prompt: str, length: int, frame: int) -> Image.Image:
    """One frame of the picture.

    Args:
      videos: of each stage, `(frames, height, width, 3)` uint8.
      prompt: the text above them.
      length: how many frames the picture has; a shorter clip shows each frame longer.
      frame: which one this is, from 0.
    """
    panels = {}
    for stage, video in videos.items():
        count, height, width, _ = video.shape
        # Keyframe k is frame 4k of 29.
        shown = frame * (count - 1) // (length - 1)
        size = (round(width * HEIGHT / height), HEIGHT)
        panels[stage] = Image.fromarray(video[shown]).resize(size, Image.Resampling.NEAREST)
    total = sum(panel.width + GAP for panel in panels.values()) + GAP
    page = Image.new("RGB", (total, HEIGHT + LABEL + 20 + 2 * GAP), PAPER)
    pen, left = ImageDraw.Draw(page), GAP
    pen.text((GAP, GAP - 2), f"“{prompt}”", INK, ImageFont.load_default(size=13))
    for stage, panel in panels.items():
        count, height, width, _ = videos[stage].shape
        page.paste(panel, (left, 20 + GAP))
        top = 20 + GAP + HEIGHT + 2
        pen.text((left, top), stage, INK, FONT)
        frames = f"{count} frames" if count > 1 else "1 image"
        pen.text((left, top + 13), f"{frames} of {width}x{height}", PALE, FONT)
        left += panel.width + GAP
    return page


def main() -> None:
    """Writes the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("item", type=Path, help="a folder that sample.py wrote: outputs/000")
    parser.add_argument("picture", type=Path, help="the .gif or .webp to write")
    arguments = parser.parse_args()
    prompt = json.loads((arguments.item / "metadata.json").read_text())["prompt"]
    videos = {stage: read_stage(arguments.item, stage) for stage in STAGES}
    length = len(videos["translation"])
    pages = [draw(videos, prompt, length, frame) for frame in range(length)]
    # One palette for all frames: colors of their own would flicker.
    palette = pages[length // 2].quantize(128, dither=Image.Dither.NONE)
    if arguments.picture.suffix == ".gif":
        pages = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    pause = [133] * (length - 1) + [1000]  # milliseconds: 7.5 frames a second, then a rest
    pages[0].save(arguments.picture, save_all=True, append_images=pages[1:], duration=pause, loop=0)


if __name__ == "__main__":
    main()
