"""What the page shows of jobs, as HTML.

Every text that is not ours is escaped. Addresses are relative, so that the page works behind a
proxy that serves it under a path. `assets/app/page.js` puts the HTML into the page: elements with
the same `data-key` stay, and buttons with `data-act` call Python.
"""

import datetime
import html
import zlib
from collections.abc import Sequence

from show1_jax.app.jobs import Job, Status

STATUS = {
    Status.QUEUED: "waits",
    Status.IN_PROGRESS: "running",
    Status.COMPLETED: "done",
    Status.FAILED: "failed",
}


def panel(jobs: Sequence[Job], places: Sequence[int], picked: str, stages: Sequence[str]) -> str:
    """The videos that are watched: one of them large, and all as a grid if there are several.

    Args:
      jobs: the videos.
      places: how many videos are made before each.
      picked: the id of the large one; the first if there is none of that id.
      stages: all stages that the checkpoint has.
    """
    if not jobs:
        return '<p class="empty">Your video appears here.</p>'
    large = next((n for n, job in enumerate(jobs) if job.id == picked), 0)
    grid = ""
    if len(jobs) > 1:
        tiles = (
            _tile(job, place, n == large)
            for n, (job, place) in enumerate(zip(jobs, places, strict=True))
        )
        grid = f'<div class="grid" data-key="grid">{"".join(tiles)}</div>'
    return grid + _large(jobs[large], places[large], stages)


def history(jobs: Sequence[Job], more: bool) -> str:
    """The list of videos.

    Args:
      jobs: newest first.
      more: whether there are older ones.
    """
    if not jobs:
        return '<p class="empty">No videos yet.</p>'
    button = '<button class="more" data-act="more">Show older ones</button>' if more else ""
    return f'<ul class="list">{"".join(map(_line, jobs))}</ul>{button}'


def sentence(job: Job, place: int) -> str:
    """How far a job is, in words.

    Args:
      job: the job.
      place: how many videos are made before it.
    """
    if job.status == Status.QUEUED:
        if place == 0:
            return "Waits: it is next."
        return f"Waits: {_count(place, 'video')} before it."
    if job.status == Status.IN_PROGRESS:
        if job.stage is None:
            return "Begins."
        what = job.doing or (f"step {job.done} of {job.steps}" if job.steps else "running")
        left = "" if job.seconds_left is None else f", about {_duration(job.seconds_left)} left"
        return f"{stage_title(job.stage)}: {what}{left}."
    if job.status == Status.FAILED:
        return f"Failed: {job.error}."
    return "Done."


def stage_title(name: str) -> str:
    """The name of a stage, as people write it."""
    return name.replace("_", " ").capitalize()


def words_note(words: Sequence[str]) -> str:
    """A warning about words that the checkpoint does not know; "" if it knows all."""
    if not words:
        return ""
    several = ", ".join(f"“{html.escape(word)}”" for word in words)
    return f'<p class="warning">The checkpoint does not know {several}.</p>'


def message(text: str) -> str:
    """A sentence beside the form that says why nothing is made."""
    return f'<p class="error">{html.escape(text)}</p>' if text else ""


def going_on(name: str, stage: str) -> str:
    """Says that the form goes on from a video.

    Args:
      name: the video's id.
      stage: the last stage that is taken from it.
    """
    title = html.escape(stage_title(stage))
    return f"<p>Goes on after <b>{title}</b> of video {html.escape(name)}.</p>"


def upload_field(max_upload: int) -> str:
    """The field for an adapter's file; page.js sends it to `PUT /v1/adapters/NAME`."""
    return (
        '<label class="upload">Upload an adapter (.safetensors)'
        f'<input type="file" accept=".safetensors" data-most="{max_upload}"></label>'
        '<p class="note" role="status"></p>'
    )


def _large(job: Job, place: int, stages: Sequence[str]) -> str:
    strip = "".join(
        _step(job, name, name == stages[-1])
        for name in stages
        if name in job.made or name in job.settings.stages
    )
    said = html.escape(sentence(job, place))
    warnings = "".join(f'<p class="warning">{html.escape(text)}</p>' for text in job.warnings)
    what = STATUS.get(job.status, "") if job.stage is None else stage_title(job.stage)
    kind = " error" if job.status == Status.FAILED else ""
    return (
        f'<article class="job" data-key="{job.id}" data-status="{job.status}">'
        f'<div class="screen">{_screen(job)}</div>'
        f'<div class="state">{_bar(job)}<p class="said{kind}">{said}</p></div>'
        f'<p class="unseen" role="status">{html.escape(what)}</p>'
        f'<p class="prompt">{html.escape(job.prompt)}</p>{_facts(job)}{warnings}'
        f'<p class="actions">{_links(job)}{_use(job)}{_delete(job)}</p>'
        f'<ol class="strip">{strip}</ol></article>'
    )


def _tile(job: Job, place: int, large: bool) -> str:
    name = html.escape(f"Video with seed {job.seed}: {sentence(job, place)}")
    return (
        f'<button class="tile" data-key="{job.id}" data-act="pick" data-id="{job.id}" '
        f'aria-pressed="{str(large).lower()}" aria-label="{name}">'
        f'<span class="small">{_screen(job, small=True)}</span>'
        f"{_bar(job)}<span>seed {job.seed}</span></button>"
    )


def _line(job: Job) -> str:
    shown = job.made[-1] if job.made else None
    label = html.escape(f"Show the video of {job.prompt}, seed {job.seed}")
    thumb = _clip(job, shown, thumb=True) if shown else '<span class="blank"></span>'
    return (
        f'<li data-key="{job.id}" data-id="{job.id}">'
        f'<button class="thumb" data-act="show" data-id="{job.id}" data-to="videos" '
        f'aria-label="{label}">{thumb}</button>'
        f'<div><p class="prompt">{html.escape(job.prompt)}</p>{_facts(job, status=True)}'
        f'<p class="actions">{_use(job)}{_delete(job)}</p></div></li>'
    )


def _facts(job: Job, status: bool = False) -> str:
    when = datetime.datetime.fromtimestamp(job.created, datetime.UTC)
    stamp = when.isoformat(timespec="seconds")
    facts = [f"seed {job.seed}", f'<time datetime="{stamp}">{when:%Y-%m-%d %H:%M} UTC</time>']
    if status:
        facts.insert(0, STATUS.get(job.status, ""))
    elif job.source:
        facts.append("goes on from another video")
    return f'<p class="facts">{" · ".join(facts)}</p>'


def _screen(job: Job, small: bool = False) -> str:
    """What is seen of a job now: the preview, or else the latest clip."""
    if job.preview:
        version = zlib.crc32(job.preview)
        label = "" if small else "What is denoised now"
        return f'<img src="v1/videos/{job.id}/preview?of={version}" alt="{label}">'
    if job.made:
        return _clip(job, _latest(job), controls=job.status == Status.COMPLETED and not small)
    return '<span class="blank"></span>'


def _latest(job: Job) -> str:
    """The last stage that is made, of those that it runs if there is one."""
    own = [name for name in job.settings.stages if name in job.made]
    return own[-1] if own else job.made[-1]


def _clip(job: Job, stage: str, *, controls: bool = False, thumb: bool = False) -> str:
    label = html.escape(f"{stage_title(stage)} of {job.prompt}")
    ending = job.outputs.shown(0, stage)[0].suffix[1:]
    address = _content(job, stage, ending)
    if ending != "mp4":
        return f'<img src="{address}" alt="{label}" loading="lazy">'
    how = 'preload="metadata"' if thumb else "autoplay"
    more = " controls" if controls else ""
    return (
        f'<video src="{address}" data-key="{stage}" aria-label="{label}" muted loop playsinline '
        f"{how}{more}></video>"
    )


def _step(job: Job, stage: str, last: bool) -> str:
    """One stage in the strip, with its clip as soon as it is there."""
    made = stage in job.made
    shown = _clip(job, stage) if made else '<span class="blank"></span>'
    button = ""
    if made and not last and not job.waits_or_runs:
        button = (
            f'<button data-act="go_on" data-id="{job.id}" data-stage="{stage}" data-to="form" '
            'title="Make the later stages anew, with other settings">Go on from here</button>'
        )
    now = ' aria-current="step"' if job.stage == stage else ""
    title = stage_title(stage)
    return f'<li data-key="{stage}"{now}>{shown}<span class="name">{title}</span>{button}</li>'


def _bar(job: Job) -> str:
    if not job.waits_or_runs:
        return ""
    return f'<progress max="100" value="{job.progress:.1f}" aria-label="Progress"></progress>'


def _links(job: Job) -> str:
    if not job.made or job.waits_or_runs:
        return ""
    stage = _latest(job)
    endings = [path.suffix[1:] for path in job.outputs.shown(0, stage)]
    links = [(ending, ending) for ending in endings] + [("json", "metadata")]
    return "".join(
        f'<a href="{_content(job, stage, ending)}" download="{job.id}.{ending}">{name}</a>'
        for ending, name in links
    )


def _content(job: Job, stage: str, ending: str) -> str:
    return f"v1/videos/{job.id}/content?stage={stage}&amp;format={ending}"


def _use(job: Job) -> str:
    return f'<button data-act="use" data-id="{job.id}" data-to="form">Use these settings</button>'


def _delete(job: Job) -> str:
    ask = "Give this video up?" if job.waits_or_runs else "Delete this video?"
    return f'<button data-act="delete" data-id="{job.id}" data-ask="{ask}">Delete</button>'


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"
