"""The page's form and HTML, without a browser."""

import dataclasses
import re

import pytest

from show1_jax.app import views
from show1_jax.app.form import Source, Values
from show1_jax.app.jobs import Job, Status
from show1_jax.app.requests import Refused, Settings
from show1_jax.stages import names

STAGES = names()
DEFAULTS = {name: (10, 1.0) for name in STAGES}
PROMPT = "a <b>red</b> circle & 'more'"


def values(**changes):
    made = Values(
        PROMPT, False, 3, 2, STAGES, "", [], 1.0,
        {name: 10 for name in STAGES}, {name: 1.0 for name in STAGES},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def job(tmp_path, made=(), **changes):
    new = Job.new(tmp_path, PROMPT, 3, Settings(tuple(STAGES)), 0.0)
    new.made = list(made)
    new.change(**changes)
    return new


def test_a_request_says_what_the_form_holds():
    request = values().request(DEFAULTS, None)
    assert (request.prompt, request.seed, request.n) == (PROMPT, 3, 2)
    assert request.steps == {name: steps for name, (steps, _) in DEFAULTS.items()}
    assert request.negative_prompt is None


def test_a_request_says_the_steps_of_the_stages_that_are_run():
    steps = {name: 5 for name in STAGES}
    request = values(random=True, stages=STAGES[1::-1], steps=steps, adapters=["a"], weight=0.5)
    made = request.request(DEFAULTS, None)
    assert made.stages == STAGES[:2]
    assert made.steps == {name: 5 for name in STAGES[:2]}
    assert made.seed is None
    assert [(own.name, own.weight) for own in made.adapters] == [("a", 0.5)]


def test_a_request_that_goes_on_takes_prompt_and_seed_from_its_source():
    made = values(stages=STAGES[1:]).request(DEFAULTS, Source("id", STAGES[0]))
    assert (made.source, made.prompt, made.seed, made.n) == ("id", None, None, 1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": " "}, "give a prompt"),
        ({"stages": []}, "choose at least one stage to run"),
        ({"seed": None}, "give a seed, or have one chosen at random"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"count": 99}, "n: input should be less than or equal to 16"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(changes, why):
    with pytest.raises(Refused, match=f"^{why}$"):
        values(**changes).request(DEFAULTS, None)


def test_the_form_is_filled_from_a_video(tmp_path):
    found = job(tmp_path)
    found.settings = Settings(tuple(STAGES[:2]), ((STAGES[0], 7),), (), "blur", (("a", 0.5),))
    filled = Values.of_job(found, DEFAULTS)
    assert Values.of_flat(filled.flat(), STAGES) == filled
    assert filled.steps[STAGES[0]] == 7
    assert filled.request(DEFAULTS, None).steps[STAGES[0]] == 7


def test_texts_of_clients_are_escaped(tmp_path):
    found = job(tmp_path, STAGES, status=Status.FAILED, error="<script>", warnings=["<i>"])
    shown = views.panel([found, found], [0, 0], found.id, STAGES) + views.history([found], True)
    shown += views.message("<i>") + views.words_note(["<i>"]) + views.going_on("<i>", STAGES[0])
    assert not re.search("<(script|i>|b>red)", shown)
    assert not re.search('(src|href)="(/|http)', shown)  # relative, for proxies


@pytest.mark.parametrize(
    ("fields", "place", "said"),
    [
        ({}, 0, "Waits: it is next."),
        ({}, 2, "Waits: 2 videos before it."),
        ({"status": Status.IN_PROGRESS}, 0, "Begins."),
        (
            {"status": Status.IN_PROGRESS, "stage": "a_stage", "done": 2, "steps": 9,
             "seconds_left": 12.3},
            0,
            "A stage: step 2 of 9, about 12 s left.",
        ),
        (
            {"status": Status.IN_PROGRESS, "stage": "t5", "doing": "compiling",
             "seconds_left": 300},
            0,
            "T5: compiling, about 5 min left.",
        ),
        ({"status": Status.FAILED, "error": "no memory"}, 0, "Failed: no memory."),
        ({"status": Status.COMPLETED}, 0, "Done."),
    ],
)  # fmt: skip
def test_the_state_of_a_video_in_words(tmp_path, fields, place, said):
    assert views.sentence(job(tmp_path, **fields), place) == said


def test_clips_appear_as_they_are_made_and_links_when_all_is_done(tmp_path):
    found = job(tmp_path, STAGES[:1], status=Status.IN_PROGRESS, preview=b"picture")
    running = views.panel([found], [0], "", STAGES)
    assert running.count("<video") == 1
    assert f"v1/videos/{found.id}/preview" in running
    assert "go_on" not in running
    assert "download=" not in running
    found.made = STAGES
    found.change(status=Status.COMPLETED, preview=b"")
    done = views.panel([found], [0], "", STAGES)
    assert done.count('data-act="go_on"') == len(STAGES) - 1
    assert re.findall(r"format=(\w+)\" download", done) == ["mp4", "gif", "json"]
    assert f"stage={STAGES[2]}&amp;format=png" in done


def test_several_videos_are_a_grid_to_pick_from(tmp_path):
    several = [job(tmp_path) for _ in range(3)]
    shown = views.panel(several, [0, 1, 2], several[1].id, STAGES)
    assert shown.count('class="tile"') == 3
    assert re.search(rf'data-id="{several[1].id}" aria-pressed="true"', shown)
    assert f'<article class="job" data-key="{several[1].id}"' in shown


def test_older_videos_are_shown_if_there_are_some(tmp_path):
    assert 'data-act="more"' in views.history([job(tmp_path)], True)
    assert 'data-act="more"' not in views.history([job(tmp_path)], False)
    assert "No videos yet" in views.history([], False)
