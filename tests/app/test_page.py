"""The page in a browser: a video from prompt to play, another seed, a reload, a phone."""

import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from show1_jax.shapes.judge import measure
from tests.app.serving import CHROMIUM, browser, local_only, served, set_steps

PROMPT = "a small red circle moving left on a black background"
TOKEN = "a secret"
SECONDS = 240  # for a video, on a machine that does other things too
AXE = "SHOW1_AXE"  # where axe.min.js is

pytestmark = [
    pytest.mark.slow,
    pytest.mark.smoke,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("page") / "out"


@pytest.fixture(scope="module")
def address(out):
    with served(out, "--token", TOKEN) as address:
        yield address


@pytest.fixture(scope="module")
def context(address):
    with browser() as chromium:
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        context.wanted = local_only(context)
        yield context


@pytest.fixture(scope="module")
def page(context, address):
    """The page after a video was asked for."""
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"{address}?token={TOKEN}")
    page.get_by_role("button", name=PROMPT).click()
    set_steps(page)
    page.get_by_label("Random").uncheck()
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_role("button", name="Make", exact=True).click()
    return page


def wait_for(page, status):
    page.wait_for_selector(f'#panel .job[data-status="{status}"]', timeout=SECONDS * 1000)


def seeds(page):
    facts = page.locator("#history li .facts")
    return [int(re.search(r"seed (\d+)", text)[1]) for text in facts.all_inner_texts()]


def stage_boxes(page):
    boxes = page.locator("#stages").get_by_role("checkbox")
    boxes.first.wait_for()
    return boxes.all()


def test_a_video_is_made_and_plays(page, context, address):
    seen = "() => { const i = document.querySelector('#panel .screen img[src*=preview]');"
    page.wait_for_function(
        f"{seen} return i && i.complete && i.naturalWidth > 0; }}", timeout=SECONDS * 1000
    )
    # The first stage's clip is there before the last one's.
    page.wait_for_selector("#panel .strip video", timeout=SECONDS * 1000)
    assert page.locator('#panel .job[data-status="in_progress"]').count() == 1
    first = page.locator("#panel .strip video").first.element_handle()
    wait_for(page, "completed")
    assert first.evaluate("video => video.isConnected")  # it was not made anew

    page.wait_for_function(
        "() => document.querySelector('#panel .screen video')?.readyState >= 2", timeout=20_000
    )
    before = page.locator("#panel .screen video").evaluate("video => video.currentTime")
    page.wait_for_function(
        "before => document.querySelector('#panel .screen video').currentTime != before",
        arg=before, timeout=20_000,
    )  # fmt: skip

    link = page.get_by_role("link", name="mp4").get_attribute("href")
    answer = context.request.get(address + link)
    assert answer.ok
    with av.open(io.BytesIO(answer.body())) as video:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    assert frames.shape == (29, 80, 144, 3)
    found = measure(frames).combination
    assert (found.color, found.shape, found.direction) == ("red", "circle", "left")
    for name in ("gif", "metadata"):
        link = page.get_by_role("link", name=name).get_attribute("href")
        assert context.request.get(address + link).ok


def test_another_seed_and_a_reload(page):
    page.get_by_label("Seed", exact=True).fill("4")
    boxes = stage_boxes(page)
    for box in boxes[1:]:
        box.uncheck()
    page.get_by_role("button", name="Make", exact=True).click()
    page.wait_for_selector("#history li:nth-child(2)")
    wait_for(page, "completed")
    assert seeds(page) == [4, 3]
    assert page.locator("#panel .strip li").count() == 1

    page.reload()
    page.wait_for_selector("#history li:nth-child(2)")
    assert seeds(page) == [4, 3]
    assert "seed 4" in page.locator("#panel .facts").inner_text()


def test_going_on_with_other_settings(page):
    page.locator("#history li").nth(1).locator(".thumb").click()
    page.wait_for_selector("#panel .strip button")
    page.locator("#panel .strip button").last.click()
    page.wait_for_selector("#banner b")
    assert page.get_by_label("Prompt", exact=True).is_disabled()
    page.get_by_role("button", name="More settings").click()
    assert [box.is_checked() for box in stage_boxes(page)] == [False] * 4 + [True]
    page.get_by_role("button", name="Make a new video instead").click()
    page.wait_for_selector("#banner b", state="detached")


def test_wrong_values_are_told_in_one_sentence(page):
    page.get_by_label("Prompt", exact=True).fill("a small mauve circle")
    page.wait_for_selector("#words p")
    assert "mauve" in page.locator("#words p").inner_text()
    page.get_by_label("Prompt", exact=True).fill(" ")
    page.get_by_role("button", name="Make", exact=True).click()
    page.wait_for_selector("#said p")
    assert page.locator("#said p").inner_text() == "Give a prompt."


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 900})


def test_the_page_is_accessible(page, tmp_path):
    script = os.environ.get(AXE)
    if not script:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"{AXE} is not set, and there is no npm")
        command = [npm, "install", "--silent", "--prefix", tmp_path, "axe-core"]
        if subprocess.run(command, capture_output=True, timeout=120).returncode:
            pytest.skip("npm cannot install axe-core")
        script = tmp_path / "node_modules/axe-core/axe.min.js"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.reload()
        page.wait_for_selector("#history li:nth-child(2)")
        page.get_by_role("button", name="More settings").click()
        page.add_script_tag(path=script)
        for found in page.evaluate("axe.run().then(result => result.violations)"):
            assert found["impact"] not in ("serious", "critical"), (scheme, found["nodes"])


def test_programs_get_a_video_from_the_same_door_as_from_the_original(page, address, tmp_path):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    del page  # its programs are compiled
    headers = {"Authorization": f"Bearer {TOKEN}"}
    client = Client(address, headers=headers, download_files=tmp_path, verbose=False)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/show-1"]
    waiting = client.submit(PROMPT, seed=0, steps=5, api_name="/show-1")
    with pytest.raises(AppError, match="give a prompt"):
        client.predict(" ", api_name="/show-1")
    assert not waiting.done()  # others are not kept waiting by it
    with av.open(waiting.result(SECONDS)) as video:
        assert video.streams.video[0].frames == 29


def test_nothing_was_asked_of_others_and_nothing_failed(page, context, out):
    assert context.wanted == []
    assert page.errors == []
    assert {Path(path).name for path in os.listdir(out)} >= {".page", "adapters"}
