"""The HTTP service: videos as resources, in the asynchronous shape that video servers share.

`POST /v1/videos` answers 202 with an id at once; `GET /v1/videos/ID` says how far it is, and
`GET /v1/videos/ID/content` gives the file. OpenAPI's page is at `/docs`. Errors are
`{"error": {"message": "one sentence"}}`.
"""

import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, Literal

import anyio
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from show1_jax._version import __version__
from show1_jax.app.jobs import Job
from show1_jax.app.requests import Refused, VideoRequest, why_invalid
from show1_jax.app.service import Service

COOKIE = "show1_token"
MAX_BODY = 1_000_000  # bytes of a request, but for adapters
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")
OPEN = ("/healthz",)  # needs no token
MEDIA = {
    "mp4": "video/mp4",
    "gif": "image/gif",
    "png": "image/png",
    "json": "application/json",
}
Ending = Literal["mp4", "gif", "png", "json"]


class Video(BaseModel):
    """One video, as clients see it."""

    id: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    stage: str | None = Field(description="what is done now: a stage or a text encoder")
    progress: float = Field(description="0 to 100")
    error: str | None
    warnings: list[str]
    prompt: str
    seed: int
    source: str | None
    settings: dict[str, Any] = Field(description="as in the request")
    made: list[str] = Field(description="the stages whose results are there")
    place: int = Field(description="how many videos are made before this one")
    step: int
    steps: int
    doing: str = Field(description='what is done besides steps, such as "compiling"')
    seconds_left: float | None
    preview: bool = Field(description="whether there is something to be seen at …/preview")
    created_at: float = Field(description="seconds since 1970")
    ended_at: float | None


class Accepted(Video):
    """The first video of a request, and the ids of all."""

    ids: list[str]


class Videos(BaseModel):
    """A page of the list, newest first."""

    data: list[Video]
    has_more: bool


def describe(service: Service, job: Job) -> dict[str, Any]:
    """What clients see of a job."""
    return {
        "id": job.id,
        "status": job.status,
        "stage": job.stage,
        "progress": round(job.progress, 1),
        "error": job.error,
        "warnings": job.warnings,
        "prompt": job.prompt,
        "seed": job.seed,
        "source": job.source,
        "settings": job.settings.to_json(),
        "made": job.made,
        "place": service.place(job),
        "step": job.done,
        "steps": job.steps,
        "doing": job.doing,
        "seconds_left": job.seconds_left,
        "preview": bool(job.preview),
        "created_at": job.created,
        "ended_at": job.ended,
    }


def make_app(service: Service, token: str = "", max_upload: int = 512 * 2**20) -> FastAPI:
    """The application, without the page.

    Args:
      service: makes the videos.
      token: what clients must show: `Authorization: Bearer TOKEN`; browsers open `/?token=TOKEN`
        once. "" for nothing.
      max_upload: bytes of an adapter.
    """
    app = FastAPIOffline(  # whose /docs fetches nothing from outside
        title="Show-1",
        version=__version__,
        description="Videos from prompts.",
        docs_url="/docs",
        redoc_url=None,
        responses={"4XX": {"description": '`{"error": {"message": "one sentence"}}`'}},
    )
    _add_videos(app, service)
    _add_adapters(app, service, max_upload)
    _add_operation(app, service)
    _add_errors(app)
    app.add_middleware(_Guard, token=token)
    return app


def _add_videos(app: FastAPI, service: Service) -> None:
    @app.post("/v1/videos", status_code=202, tags=["videos"], response_model=Accepted)
    def make(request: VideoRequest) -> dict[str, Any]:
        """Accepts one or several videos to make, and answers at once."""
        jobs = service.submit(request)
        return describe(service, jobs[0]) | {"ids": [job.id for job in jobs]}

    @app.get("/v1/videos", tags=["videos"], response_model=Videos)
    def videos(
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
        after: Annotated[str | None, Query(max_length=100)] = None,
    ) -> dict[str, Any]:
        """The videos in the output folder, newest first; `after` is the last id of a page."""
        found = service.newest(limit + 1, after)
        return {
            "data": [describe(service, job) for job in found[:limit]],
            "has_more": len(found) > limit,
        }

    @app.get("/v1/videos/{name}", tags=["videos"], response_model=Video)
    def video(name: str) -> dict[str, Any]:
        """How far a video is."""
        return describe(service, service.job(name))

    @app.delete("/v1/videos/{name}", tags=["videos"])
    def delete(name: str) -> dict[str, Any]:
        """Removes a video and its files; a running one stops after its current steps."""
        service.delete(name)
        return {"id": name, "deleted": True}

    @app.get("/v1/videos/{name}/content", tags=["videos"], response_class=FileResponse)
    def content(name: str, stage: str | None = None, format: Ending | None = None) -> FileResponse:
        """A stage's clip or picture, the last one's if none is named; json: metadata."""
        path = service.file(name, stage, format)
        return FileResponse(
            path,
            media_type=MEDIA[path.suffix[1:]],
            filename=f"{name}-{path.name}",
            content_disposition_type="inline",
        )

    @app.get("/v1/videos/{name}/preview", tags=["videos"], response_class=Response)
    def preview(name: str) -> Response:
        """What is being denoised, as the network sees it now: an animated WebP picture."""
        picture = service.job(name).preview
        if not picture:
            raise Refused("there is nothing to be seen yet", 404)
        return Response(picture, media_type="image/webp", headers={"Cache-Control": "no-store"})


def _add_adapters(app: FastAPI, service: Service, max_upload: int) -> None:
    @app.get("/v1/adapters", tags=["adapters"])
    def adapters() -> dict[str, list[str]]:
        """The names of uploaded adapters."""
        return {"data": service.studio.adapter_names()}

    @app.put("/v1/adapters/{name}", status_code=201, tags=["adapters"])
    async def upload(name: str, request: Request) -> dict[str, str]:
        """Keeps the body, a `.safetensors` file, as an adapter of the first stage."""
        if not ADAPTER_NAME.fullmatch(name):
            raise Refused("give the adapter a name of letters, digits, '.', '_' and '-' that ends "
                          "in .safetensors")  # fmt: skip
        too_large = Refused(f"adapters have at most {max_upload // 2**20} MiB", 413)
        part = service.out / "adapters" / f".{secrets.token_hex(8)}.part"
        size = 0
        try:
            async with await anyio.open_file(part, "wb") as file:
                async for data in request.stream():
                    size += len(data)
                    if size > max_upload:
                        raise too_large
                    await file.write(data)
            await anyio.to_thread.run_sync(service.add_adapter, name, part)
        except ClientDisconnect:
            raise Refused("the upload was cut off", 400) from None
        except OSError as error:
            raise Refused(f"the adapter cannot be kept: {error.strerror}", 507) from None
        finally:
            part.unlink(missing_ok=True)
        return {"name": name}

    @app.delete("/v1/adapters/{name}", tags=["adapters"])
    def delete(name: str) -> dict[str, Any]:
        """Removes an adapter."""
        service.delete_adapter(name)
        return {"name": name, "deleted": True}


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operation"])
    def health() -> dict[str, str]:
        """200 while requests are accepted, 503 when the service is about to end."""
        if service.draining:
            raise Refused("the service is about to end", 503)
        if not service.works:
            raise Refused("nothing is made any more; the service's log says why", 503)
        return {"status": "ok"}

    @app.get("/metrics", tags=["operation"], response_class=Response)
    def metrics() -> Response:
        """Counts, for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.api_route(
        "/v1/{path:path}",
        methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        include_in_schema=False,
    )
    def nothing(path: str, request: Request) -> None:
        raise Refused(f"there is no {request.method} /v1/{path:.60}; see /docs", 404)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, why: Refused) -> Response:
        headers = {} if why.retry_after is None else {"Retry-After": str(why.retry_after)}
        return _said(str(why), why.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, why: RequestValidationError) -> Response:
        first = why.errors()[0]
        if first["type"] == "json_invalid":
            return _said("the body is not valid JSON", 400)
        return _said(why_invalid(first), 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, why: HTTPException) -> Response:
        return _said(str(why.detail), why.status_code, dict(why.headers or {}))

    @app.exception_handler(Exception)
    async def fault(request: Request, why: Exception) -> Response:
        return _said("an error inside the service; its log says more", 500)


class _Guard:
    """Refuses requests without the token, and requests that are too large."""

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":  # nothing here speaks WebSocket
            answer = None
            if self._token and scope["path"] not in OPEN:
                answer = self._entrance(Request(scope))
            await (answer or self._app)(scope, _limited(scope["path"], receive), send)

    def _entrance(self, request: Request) -> Response | None:
        """An answer for clients without the token, or those that bring it in the page's address."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return None
        if self._is_token(request.cookies.get(COOKIE, "")):
            return None
        if request.url.path == "/" and self._is_token(request.query_params.get("token", "")):
            answer = RedirectResponse(".", 303)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="lax")
            return answer
        return _said(
            "give the right token: Authorization: Bearer TOKEN, or /?token=TOKEN in a browser", 401,
            {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())


def _limited(path: str, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """Receives a request's body, but not more of it than `MAX_BODY`; adapters may have more."""
    if path.startswith("/v1/adapters/"):
        return receive
    size = 0

    async def limited() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            raise HTTPException(413, "the request is too large")
        return message

    return limited


def _said(message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers)
