"""The service over HTTP: what clients send, and what they are told."""

import io
import json
import re

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from starlette.testclient import TestClient

from show1_jax.adapters.files import Adapter, save_adapter
from show1_jax.app.http import make_app
from show1_jax.checkpoints.networks import abstract_params
from tests.app.conftest import PROMPT, wait

KEYFRAMES = {"prompt": PROMPT, "stages": ["keyframes"]}


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_video_is_asked_for_watched_and_fetched(client, service):
    answer = client.post("/v1/videos", json={"prompt": PROMPT, "seed": 3, "n": 2})
    assert answer.status_code == 202
    accepted = answer.json()
    assert len(accepted["ids"]) == 2
    assert accepted["id"] == accepted["ids"][0]
    assert accepted["status"] in ("queued", "in_progress")
    wait(service, *accepted["ids"])
    videos = [client.get(f"/v1/videos/{name}").json() for name in accepted["ids"]]
    assert [(video["seed"], video["status"], video["progress"]) for video in videos] == [
        (3, "completed", 100), (4, "completed", 100)
    ]  # fmt: skip
    content = f"/v1/videos/{accepted['id']}/content"
    whole = client.get(content)
    assert whole.headers["content-type"] == "video/mp4"
    part = client.get(content, headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, whole.content[4:12])
    assert part.headers["content-range"] == f"bytes 4-11/{len(whole.content)}"
    assert client.get(content, params={"format": "gif"}).content[:4] == b"GIF8"
    picture = client.get(content, params={"stage": "first_frame", "format": "png"})
    assert picture.content[1:4] == b"PNG"
    assert client.get(content, params={"format": "json"}).json()["prompt"] == PROMPT
    listed = client.get("/v1/videos", params={"limit": 1}).json()
    assert [video["id"] for video in listed["data"]] == accepted["ids"][1:]
    assert listed["has_more"]
    assert client.delete(f"/v1/videos/{accepted['id']}").json()["deleted"]
    assert client.get(content).status_code == 404
    assert client.get("/healthz").json() == {"status": "ok"}
    assert 'show1_videos_total{status="completed"} 2.0' in client.get("/metrics").text


BAD = {
    "no prompt": {},
    "an empty prompt": {"prompt": ""},
    "a blank prompt": {"prompt": " \n"},
    "a prompt of 10,000 words": {"prompt": "red " * 10_000},
    "a prompt that is no text": {"prompt": ["a", "b"]},
    "surrogates": '{"prompt": "\\ud800"}',
    "no JSON": "{",
    "a list": [1],
    "a seed that is text": {"prompt": PROMPT, "seed": "1"},
    "a broken seed": {"prompt": PROMPT, "seed": 1.5},
    "a negative seed": {"prompt": PROMPT, "seed": -1},
    "a large seed": {"prompt": PROMPT, "seed": 2**32},
    "a last seed that is too large": {"prompt": PROMPT, "seed": 2**32 - 1, "n": 2},
    "no video": {"prompt": PROMPT, "n": 0},
    "a thousand videos": {"prompt": PROMPT, "n": 1000},
    "an unknown stage": {"prompt": PROMPT, "stages": ["keyframes", "upscaling"]},
    "no stage": {"prompt": PROMPT, "stages": []},
    "a stage that lacks its start": {"prompt": PROMPT, "stages": ["translation"]},
    "an unknown field": {"prompt": PROMPT, "size": "4k"},
    "no steps": {"prompt": PROMPT, "steps": 0},
    "too many steps": {"prompt": PROMPT, "steps": 10**9},
    "guidance beyond all numbers": {"prompt": PROMPT, "guidance": 1e300},
    "steps of 4,000 digits": '{"prompt": "a", "steps": ' + "9" * 4000 + "}",
    "steps of an unknown stage": {"prompt": PROMPT, "steps": {"x": 3}},
    "guidance that is infinite": '{"prompt": "a", "guidance": Infinity}',
    "an adapter that is not there": {**KEYFRAMES, "adapters": [{"name": "a.safetensors"}]},
    "an adapter elsewhere": {**KEYFRAMES, "adapters": [{"name": "../../etc/passwd"}]},
    "a source that is not there": {"source": "20260101-000000-00000000", "stages": ["keyframes"]},
    "a source elsewhere": {"source": "../../etc", "stages": ["keyframes"]},
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(case, client, tmp_path):
    before, body = files(tmp_path), BAD[case]
    text = body if isinstance(body, str) else json.dumps(body)
    answer = client.post("/v1/videos", content=text, headers={"content-type": "application/json"})
    message = answer.json()["error"]["message"]
    assert 400 <= answer.status_code < 500, answer.text
    assert "\n" not in message
    assert not re.search("Traceback|Error|pydantic", message)
    assert 5 < len(message) < 250
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/..%2f..%2fetc/content",
        "/v1/videos/%2e%2e/content",
        "/v1/videos/x/content",
        "/v1/videos/ID/content?stage=../../job",
        "/v1/videos/ID/content?stage=keyframes&format=npy",
        "/v1/videos/ID/content?stage=keyframes&format=png",
        "/v1/videos/ID/content?stage=translation",
        "/v1/videos/ID/preview",
        "/v1/videos?limit=-1",
        "/v2/videos",
    ],
)
def test_paths_that_lead_nowhere_are_4xx(path, client, service):
    name = client.post("/v1/videos", json=KEYFRAMES).json()["id"]
    wait(service, name)
    answer = client.get(path.replace("ID", name))
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


def test_content_that_is_not_made_yet_is_409(client, service, sampling):
    sampling.gate.clear()
    name = client.post("/v1/videos", json=KEYFRAMES).json()["id"]
    answer = client.get(f"/v1/videos/{name}/content")
    assert answer.status_code == 409
    assert "ask for a stage" in answer.json()["error"]["message"]


def test_a_full_queue_is_429_with_retry_after(make_service):
    client = TestClient(make_app(make_service(max_queue=1, start=False)))
    assert client.post("/v1/videos", json=KEYFRAMES).status_code == 202
    answer = client.post("/v1/videos", json=KEYFRAMES)
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 3600


def test_nobody_enters_without_the_token(service):
    app = make_app(service, token="secret")
    client = TestClient(app, follow_redirects=False)
    for path in ("/", "/docs", "/openapi.json", "/v1/videos", "/metrics", "/?token=wrong"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert "give the right token" in answer.json()["error"]["message"]
    assert client.get("/healthz").status_code == 200
    wrong, right = ({"Authorization": f"Bearer {text}"} for text in ("wrong", "secret"))
    assert client.get("/v1/videos", headers=wrong).status_code == 401
    assert client.get("/v1/videos", headers=right).status_code == 200
    entered = client.get("/?token=secret")
    assert entered.status_code == 303
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert client.get("/v1/videos").status_code == 200


def test_adapters_are_uploaded_and_change_what_is_made(client, service, tmp_path):
    unet = service.studio.cascade.engine().samplers["keyframes"].unet
    params = flatten_dict(abstract_params(unet), sep="/")
    shapes = {path: leaf.shape for path, leaf in params.items()}
    path = next(key for key in shapes if key.endswith("attn1/to_q/kernel"))
    change = {path: (np.full(shapes[path], 0.01, np.float32),)}
    file = tmp_path / "own.safetensors"
    save_adapter(file, Adapter(change))
    assert client.put("/v1/adapters/own.safetensors", content=file.read_bytes()).status_code == 201
    assert client.get("/v1/adapters").json() == {"data": ["own.safetensors"]}
    chosen = [{"name": "own.safetensors", "weight": 0.5}]
    name = client.post("/v1/videos", json={**KEYFRAMES, "adapters": chosen}).json()["id"]
    (job,) = wait(service, name)
    metadata = json.loads((job.folder / "000" / "metadata.json").read_text())
    (own,) = metadata["stages"]["keyframes"]["adapters"]
    assert own.endswith("own.safetensors=0.5")
    save_adapter(file, Adapter({path: (np.full(shapes[path], 0.02, np.float32),)}))
    other = client.put("/v1/adapters/own.safetensors", content=file.read_bytes())
    assert other.status_code == 409
    assert client.delete("/v1/adapters/own.safetensors").json()["deleted"]
    assert client.delete("/v1/adapters/own.safetensors").status_code == 404
    assert client.get("/v1/adapters").json() == {"data": []}


@pytest.mark.parametrize(
    ("name", "size", "status"),
    [
        ("own.safetensors", 100, 422),  # no adapter
        ("own.bin", 100, 422),
        (".safetensors", 100, 422),
        ("..%2fown.safetensors", 100, 404),
        ("own.safetensors", 2**20 + 1, 413),
    ],
)
def test_uploads_that_are_refused_leave_nothing(name, size, status, client, service, tmp_path):
    for body in (bytes(size), io.BytesIO(bytes(size))):  # with a length and without
        answer = client.put(f"/v1/adapters/{name}", content=body)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    assert {path.name for path in files(tmp_path)} <= {"lock"}


def test_bodies_without_a_length_are_limited(client):
    answer = client.post("/v1/videos", content=(bytes(2**16) for _ in range(100)))
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "the request is too large"


def test_each_request_has_an_example_in_openapi(client):
    described = client.get("/openapi.json").json()
    request = described["components"]["schemas"]["VideoRequest"]["properties"]
    assert request["prompt"]["examples"] == [PROMPT]
    assert set(described["paths"]) >= {"/v1/videos", "/v1/videos/{name}/content", "/healthz"}
    page = client.get("/docs")
    assert page.status_code == 200
    assert not re.search(r"(src|href)=.https?://", page.text)
