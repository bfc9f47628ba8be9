"""Who may see the page, and what else Gradio answers."""

import gc
import re
import warnings

import pytest
from starlette.routing import Mount, WebSocketRoute
from starlette.testclient import TestClient

from show1_jax.app.http import make_app
from show1_jax.app.service import Service
from show1_jax.configs import tiny

TOKEN = "a secret"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(out / ".page"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        from show1_jax.app.page import add_page

        config = tiny.get_config()
        service = Service(config, config.checkpoint, out)
        with warnings.catch_warnings():
            # Gradio leaves event loops that it made for their locks.
            warnings.simplefilter("ignore", ResourceWarning)
            app = add_page(make_app(service, TOKEN), service)
            gc.collect()
        yield app


def all_routes(routes):
    for route in routes:
        included = getattr(route, "original_router", None)  # of FastAPI
        if isinstance(route, Mount) or included:
            yield from all_routes((included or route).routes)
        else:
            yield route


def test_nothing_but_health_is_answered_without_the_token(app):
    client = TestClient(app, follow_redirects=False)
    seen = 0
    for route in all_routes(app.routes):
        assert not isinstance(route, WebSocketRoute)  # the guard would not see it
        path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", "/"))
        for method in getattr(route, "methods", None) or ("GET",):
            answer = client.request(method, path)
            closed = re.search("/(proxy|file)=", path)  # to everybody
            status = 200 if path == "/healthz" else 404 if closed else 401
            assert answer.status_code == status, (method, path)
            seen += 1
    assert seen > 50


def test_a_browser_opens_the_page_with_the_token_once(app):
    client = TestClient(app)
    assert client.get(f"/?token={TOKEN}").status_code == 200
    page = client.get("/")
    assert page.status_code == 200
    for link in re.findall(r'(?:src|href)="\./(assets/[^"]+)"', page.text):
        assert client.get(f"/{link}").status_code == 200
    for path in ("/config", "/theme.css", "/v1/videos", "/docs", "/metrics"):
        assert client.get(path).status_code == 200, path


def test_only_the_original_function_is_for_programs(app):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    info = TestClient(app).get("/gradio_api/info", headers=headers).json()
    assert list(info["named_endpoints"]) == ["/show-1"]
    assert info["unnamed_endpoints"] == {}


def test_gradio_takes_no_files_and_loads_no_fonts(app):
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    answer = client.post("/gradio_api/upload", files={"files": ("a.txt", b"more than a byte")})
    assert answer.status_code == 413
    assert not re.search(r"@import|@font-face|url\(['\"]?http", client.get("/theme.css").text)
    assert client.get("/config").json()["analytics_enabled"] is False


@pytest.mark.parametrize("path", ["proxy=https://example.org/a", "file=https://example.org/a"])
def test_gradio_fetches_nothing_for_clients(app, path):
    client = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})
    answer = client.get(f"/gradio_api/{path}")
    assert answer.status_code == 404
    assert answer.text == ""
