"""Makes the documentation's pictures of the page: `python -m tests.app.screenshots docs/`."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.app.serving import browser, served

SECONDS = 300  # for four videos
COLORS = 128  # of the pictures, which makes them small


def main(folder: Path) -> None:
    """Makes four videos of one prompt, and writes `page.png` and `page-phone.png`.

    Args:
      folder: where they are written.
    """
    with tempfile.TemporaryDirectory() as out, served(Path(out)) as address, browser() as chromium:
        context = chromium.new_context(viewport={"width": 1280, "height": 960})
        page = context.new_page()
        page.goto(address)
        page.get_by_role("button", name="a large blue square").click()
        page.get_by_label("Random").uncheck()
        page.get_by_label("Videos", exact=True).fill("4")
        page.get_by_role("button", name="Make", exact=True).click()
        page.wait_for_selector("#panel .job")
        page.wait_for_function(
            "document.querySelectorAll('#panel .tile').length == 4"
            " && !document.querySelector('#panel progress')",
            timeout=SECONDS * 1000,
        )
        page.wait_for_selector("#panel .tile:nth-child(4) video")
        _picture(page, folder / "page.png", 0.5)
        page.set_viewport_size({"width": 390, "height": 844})
        _picture(page, folder / "page-phone.png", 1.0)


def _picture(page, path: Path, seconds: float) -> None:
    """Takes a picture with all videos at the same moment."""
    page.evaluate(
        """async seconds => {
          scrollTo(0, 0);
          document.activeElement?.blur();
          const videos = [...document.querySelectorAll("video")];
          await Promise.all(videos.map(video => new Promise(done => {
            video.pause();
            video.removeAttribute("controls");
            video.onseeked = done;
            setTimeout(done, 3000);
            video.currentTime = seconds;
          })));
        }""",
        seconds,
    )
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLORS).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
