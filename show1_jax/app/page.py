"""The web page: a form, the videos that one watches, and the folder's history.

Nothing is loaded from elsewhere, and nothing is written outside of the output folder. The page asks
the service in this process about its jobs; pictures and clips come from the HTTP service.
"""

import asyncio
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import anyio
import gradio as gr
from etils.epath import Path
from fastapi import FastAPI, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from show1_jax.app import views
from show1_jax.app.form import Source, Values, checked_request
from show1_jax.app.jobs import Job, Status
from show1_jax.app.requests import Refused
from show1_jax.app.service import Service

ASSETS = Path(__file__).parents[1] / "assets" / "app"
TICK = 0.7  # seconds between two looks at the jobs
WAIT = 0.25  # likewise, of a program that waits for its video
LISTED = 10  # videos of the history that are shown at first, and how many more each time
MAX_WATCHED = 16
CACHE = (3600, 86400)  # seconds between two looks at what programs were given, and its age
FETCHES = re.compile("/gradio_api/(proxy=|file=(?!/))")  # files of ours have absolute paths
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")
QUICK: dict[str, Any] = {
    "queue": False, "show_progress": "hidden", "api_visibility": "private",
}  # fmt: skip

Watched = dict[str, Any]  # {"ids": ids of the videos, "picked": the large one's}
Updates = dict[Any, Any]  # by component


def add_page(app: FastAPI, service: Service, max_upload: int = 512 * 2**20) -> FastAPI:
    """Mounts the page at "/", behind all routes that are there already.

    Args:
      app: the HTTP service.
      service: makes the videos.
      max_upload: bytes of an adapter.

    Returns:
      The application.
    """
    app.add_middleware(_Closed)
    # Where no event loop runs, Gradio makes some and leaves them open.
    asyncio.run(_mount(app, service, max_upload))
    # The connection that each browser keeps open ends with this event.
    app.state.page_ends = app.routes[-1].app.stop_event  # type: ignore[attr-defined]
    return app


async def _mount(app: FastAPI, service: Service, max_upload: int) -> None:
    gr.mount_gradio_app(
        app,
        Page(service, max_upload).blocks,
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,  # adapters go to the HTTP service, and nothing else is uploaded
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=_theme(),
        css_paths=ASSETS / "page.css",
    )


class _Closed:
    """Answers 404 where Gradio would fetch addresses on behalf of clients."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        closed = scope["type"] == "http" and FETCHES.match(scope["path"])
        await (Response(status_code=404) if closed else self._app)(scope, receive, send)


def _theme() -> gr.themes.Base:
    return gr.themes.Default(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        link_text_color_dark="*primary_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


class Page:
    """The page of one service.

    Attributes:
      blocks: the page, for Gradio.
    """

    def __init__(self, service: Service, max_upload: int) -> None:
        """Builds it; see `add_page`."""
        self._service = service
        self._stages = service.studio.stages
        self._defaults = service.studio.defaults
        with gr.Blocks(
            title="Show-1", analytics_enabled=False, delete_cache=CACHE, fill_width=True
        ) as self.blocks:
            _html(
                "<h1>Show-1</h1><p>Videos from a sentence, made in stages. "
                '<a href="docs">For programs</a></p>',
                "head",
            )
            with gr.Row(elem_id="columns", equal_height=False):
                with gr.Column(elem_id="form", scale=2, min_width=300):
                    self._form(max_upload)
                with gr.Column(elem_id="videos", scale=3, min_width=300):
                    _html("<h2>Videos</h2>")
                    self._panel = _live("panel")
                    _html("<h2>History</h2>")
                    self._history = _live("history")
            self._state()
            self._connect()
            self._for_programs()

    # What is on it.

    def _form(self, max_upload: int) -> None:
        """The fields, in the order of `Values.flat`."""
        self._banner = _html("", "banner")
        self._fresh = gr.Button("Make a new video instead", size="sm", visible=False)
        self._prompt = gr.Textbox(
            label="Prompt", lines=2, max_lines=5, placeholder="What should the video show?",
            elem_id="prompt",
        )  # fmt: skip
        self._words = _html("", "words")
        with gr.Group(elem_id="examples"):
            for text in self._service.studio.examples:
                button = gr.Button(text, size="sm", elem_classes="example")
                script = f"() => {json.dumps(text)}"  # without asking the server
                button.click(None, None, self._prompt, js=script)
        with gr.Row(elem_id="numbers"):
            self._seed = gr.Number(
                0, label="Seed", precision=0, min_width=100, scale=2, interactive=False
            )
            self._random = gr.Checkbox(True, label="Random", min_width=125, scale=1)
            self._count = gr.Number(1, label="Videos", precision=0, min_width=70, scale=1)
        self._make = gr.Button("Make", variant="primary", elem_id="make")
        self._said = _html("", "said")
        with gr.Accordion("More settings", open=False, elem_id="more"):
            self._chosen = gr.CheckboxGroup(
                [(views.stage_title(name), name) for name in self._stages],
                value=self._stages, label="Stages to run", elem_id="stages",
            )  # fmt: skip
            numbers = []
            for name, (steps, guidance) in self._defaults.items():
                title = views.stage_title(name)
                with gr.Row(elem_classes="numbers"):
                    numbers += [
                        gr.Number(steps, label=f"{title}: steps", precision=0, min_width=120),
                        gr.Number(guidance, label=f"{title}: guidance", min_width=120, step=0.5),
                    ]
            self._negative = gr.Textbox(
                label="Negative prompt", placeholder="What guidance leads away from"
            )
            self._adapters = gr.Dropdown(
                self._service.studio.adapter_names(), value=[], multiselect=True, label="Adapters"
            )
            self._weight = gr.Number(1.0, label="Weight of the adapters", step=0.1)
            self._upload = _live("upload", views.upload_field(max_upload))
        self._fields = [
            self._prompt, self._random, self._seed, self._count, self._chosen, self._negative,
            self._adapters, self._weight, *numbers,
        ]  # fmt: skip

    def _state(self) -> None:
        # What a browser keeps is no secret: ids, which the history shows to everybody.
        self._watched = gr.BrowserState(
            {"ids": [], "picked": ""}, storage_key="show1", secret="show1"
        )
        self._listed = gr.State(LISTED)
        self._seen = gr.State({})  # the HTML that the browser has
        self._source = gr.State(None)
        self._timer = gr.Timer(TICK, active=False)
        self._shown = [self._panel, self._history, self._timer, self._seen]

    def _connect(self) -> None:
        looking = [self._watched, self._listed]
        self.blocks.load(self._begin, looking, [*self._shown, self._adapters], **QUICK)
        self._timer.tick(
            self._look, [*looking, self._seen], self._shown, trigger_mode="once", **QUICK
        )
        self._random.change(_seed_field, [self._random, self._source], self._seed, **QUICK)
        self._prompt.change(
            self._look_up, self._prompt, self._words, trigger_mode="always_last", **QUICK
        )
        form = [self._banner, self._fresh, self._source, self._said, self._words, *self._fields]
        gr.on(
            [self._make.click, self._prompt.submit],
            self._submit,
            [*looking, self._source, *self._fields],
            [*self._shown, self._watched, *form],
            trigger_mode="once",
            **QUICK,
        )
        self._fresh.click(self._start_anew, None, form, **QUICK)
        acted = [*self._shown, self._watched, self._listed, *form]
        for place in (self._panel, self._history, self._upload):
            place.click(self._act, [*looking, self._adapters], acted, **QUICK)

    def _for_programs(self) -> None:
        """`gradio_client.Client(address).predict("a prompt", api_name="/show-1")`."""
        with gr.Column(visible=False):
            button = gr.Button()
            inputs = [
                gr.Textbox(label="prompt"),
                gr.Number(None, label="seed", precision=0),
                gr.Number(None, label="steps", precision=0),
                gr.Number(None, label="guidance"),
                gr.Textbox(None, label="negative_prompt"),
            ]
            video = gr.Video(label="video")
        button.click(
            self.infer, inputs, video, api_name="show-1", concurrency_limit=None,
            api_description="Makes one video and waits for it.",
        )  # fmt: skip

    # What it does.

    async def infer(
        self,
        prompt: str,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
    ) -> str:
        """Makes a video and waits for it, as the original's page does.

        Args:
          prompt: what to show.
          seed: None for a random one.
          steps: solver steps of every stage; None for the checkpoint's.
          guidance: guidance scale of every stage, likewise.
          negative_prompt: what guidance leads away from, likewise.

        Returns:
          The path of the .mp4.

        Raises:
          gradio.Error: if it is refused or fails.
        """
        fields = {
            "prompt": prompt,
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
            "negative_prompt": negative_prompt or None,
        }
        try:
            (job,) = await anyio.to_thread.run_sync(self._service.submit, checked_request(fields))
            while job.waits_or_runs:
                await asyncio.sleep(WAIT)
            if job.status != Status.COMPLETED:
                raise Refused(job.error or "the video was deleted")
            return str(self._service.file(job.id, None, "mp4"))
        except Refused as why:
            raise gr.Error(str(why), print_exception=False) from None

    def _begin(self, watched: Watched, listed: int) -> Updates:
        names = self._service.studio.adapter_names()
        return self._look(watched, listed, {}) | {self._adapters: gr.Dropdown(choices=names)}

    def _look(self, watched: Watched, listed: int, seen: dict[str, str]) -> Updates:
        """Updates of what has changed since the browser has `seen` it."""
        watching = self._known(watched["ids"])
        found = self._service.newest(listed + 1)
        now = {
            "panel": views.panel(
                watching, list(map(self._service.place, watching)), watched["picked"], self._stages
            ),
            "history": views.history(found[:listed], len(found) > listed),
        }
        active = any(job.waits_or_runs for job in [*watching, *found])
        updates: Updates = {self._timer: gr.Timer(active=active)}
        for name, component in (("panel", self._panel), ("history", self._history)):
            updates[component] = gr.skip() if seen.get(name) == now[name] else now[name]
        return updates | {self._seen: gr.skip() if now == seen else now}

    def _known(self, ids: Sequence[str]) -> list[Job]:
        jobs = []
        for name in ids[:MAX_WATCHED]:
            try:
                jobs.append(self._service.job(str(name)))
            except Refused:
                continue
        return jobs

    def _submit(self, watched: Watched, listed: int, source: Source | None, *flat: Any) -> Updates:
        values = Values.of_flat(flat, self._stages)
        try:
            made = self._service.submit(values.request(self._defaults, source))
        except Refused as why:
            text = str(why)
            return {self._said: views.message(f"{text[0].upper()}{text[1:]}.")}
        watched = {"ids": [job.id for job in made], "picked": made[0].id}
        updates = self._look(watched, listed, {}) | {self._watched: watched, self._said: ""}
        if values.random and source is None:
            updates[self._seed] = made[0].seed
        return updates

    def _look_up(self, prompt: str) -> str:
        return views.words_note(self._service.studio.unknown_words(prompt))

    def _start_anew(self) -> Updates:
        return self._free(None) | {self._chosen: gr.CheckboxGroup(value=self._stages)}

    def _free(self, source: Source | None) -> Updates:
        """Updates of the form for a new video, or one that goes on from another."""
        new = source is None
        said = "" if source is None else views.going_on(source.id, source.stage)
        return {
            self._source: source,
            self._banner: said,
            self._fresh: gr.Button(visible=not new),
            self._prompt: gr.update(interactive=new),
            self._random: gr.update(interactive=new),
            self._count: gr.update(interactive=new),
            self._said: "",
        }

    def _act(
        self, event: gr.EventData, watched: Watched, listed: int, adapters: list[str]
    ) -> Updates:
        """What a button in one of the HTML parts does."""
        data = {name: str(value) for name, value in event._data.items()}
        act, name = data.get("act"), data.get("id", "")
        try:
            if act == "uploaded":
                return self._choose(adapters, data.get("name", ""))
            if act == "more":
                listed += LISTED
            elif act == "pick":
                watched = {**watched, "picked": name}
            elif act == "show":
                ids = watched["ids"] if name in watched["ids"] else [name]
                watched = {"ids": ids, "picked": name}
            elif act == "delete":
                self._service.delete(name)
            elif act == "use":
                return self._fill(self._service.job(name), None)
            elif act == "go_on":
                return self._fill(self._service.job(name), data.get("stage", ""))
        except Refused as why:
            gr.Warning(f"{why}.")
        return self._look(watched, listed, {}) | {self._watched: watched, self._listed: listed}

    def _choose(self, adapters: list[str], name: str) -> Updates:
        names = self._service.studio.adapter_names()
        chosen = [own for own in names if own in adapters or own == name]
        return {self._adapters: gr.Dropdown(choices=names, value=chosen)}

    def _fill(self, job: Job, after: str | None) -> Updates:
        """Fills the form from a video; goes on from it if a stage is given."""
        values = Values.of_job(job, self._defaults)
        weights = {weight for _, weight in job.settings.adapters}
        if len(weights) > 1:
            gr.Warning(f"Its adapters have several weights; here all have {values.weight}.")
        source = None
        if after in job.made:
            source = Source(job.id, after)
            later = self._stages[self._stages.index(after) + 1 :]
            values = dataclasses.replace(values, stages=later)
        updates = self._free(source)
        for field, value in zip(self._fields, values.flat(), strict=True):
            if field in updates:
                updates[field]["value"] = value
            else:
                updates[field] = gr.update(value=value)
        updates[self._seed]["interactive"] = source is None
        return updates


def _html(value: str, name: str | None = None, **more: Any) -> gr.HTML:
    return gr.HTML(value, elem_id=name, elem_classes="plain", apply_default_css=False, **more)


def _live(name: str, value: str = "") -> gr.HTML:
    """A part of the page that changes by page.js."""
    script = (ASSETS / "page.js").read_text()
    return _html(value, name, html_template='<div class="show1"></div>', js_on_load=script)


def _seed_field(random: bool, source: Source | None) -> gr.Number:
    return gr.Number(interactive=not random and source is None)
