"""The queue, the worker and what is on disk."""

import json
import threading
import time

import numpy as np
import pytest

from show1_jax.app import jobs, watch
from show1_jax.app.jobs import Job
from show1_jax.app.requests import Refused, VideoRequest
from show1_jax.errors import InputError
from tests.app.conftest import PROMPT, wait

KEYFRAMES = ["keyframes"]


def submit(service, **fields):
    request = {"prompt": PROMPT, "stages": KEYFRAMES} | fields
    return [job.id for job in service.submit(VideoRequest(**request))]


def test_jobs_with_the_same_settings_are_sampled_together_in_few_sizes(make_service, sampling):
    service = make_service(start=False)
    alike = submit(service, seed=0, n=4) + submit(service, seed=10)
    other = submit(service, seed=20, steps=3)
    late = submit(service, seed=30, n=2)
    service.start()
    wait(service, *alike, *other, *late)
    assert sampling.batches == [[0, 1, 2, 3], [10, 30], [20], [31]]


@pytest.mark.parametrize(
    ("batch_size", "sizes", "batches"),
    [(3, [1, 2, 3], [[0, 1, 2], [3, 4]]), (5, [1, 2, 4, 5], [[0, 1, 2, 3, 4]]), (1, [1], None)],
)
def test_any_batch_size_is_used_up(batch_size, sizes, batches, make_service, sampling):
    service = make_service(start=False, batch_size=batch_size)
    names = submit(service, seed=0, n=5)
    service.start()
    wait(service, *names)
    assert service.studio.batch_sizes == sizes
    assert sampling.batches == (batches or [[seed] for seed in range(5)])


def test_batches_fill_all_devices(make_service, sampling, monkeypatch):
    service = make_service(start=False)
    monkeypatch.setattr(service.studio, "batch_sizes", [4, 8])  # of a mesh of four
    names = submit(service, seed=0, n=3)
    service.start()
    wait(service, *names)
    assert sampling.batches == [[0, 1, 2]]


def test_settings_that_are_the_same_are_sampled_together_however_they_were_said(
    make_service, sampling
):
    service = make_service(start=False)
    (steps, guidance) = service.studio.defaults["keyframes"]
    names = submit(service, seed=0) + submit(service, seed=1, steps=steps)
    names += submit(service, seed=2, steps={"keyframes": steps}, guidance=guidance)
    names += submit(service, seed=3, guidance={"keyframes": guidance})
    service.start()
    wait(service, *names)
    assert sampling.batches == [[0, 1, 2, 3]]


def test_a_damaged_job_fails_alone_and_says_so_after_a_restart_too(make_service):
    service = make_service(start=False)
    names = submit(service, seed=0, n=3)
    for name in names:
        job = service.job(name)
        job.outputs.begin([PROMPT], [job.seed])
    (service.job(names[1]).folder / "000" / "metadata.json").write_text("{")
    service.start()
    jobs = wait(service, *names)
    assert [job.status for job in jobs] == ["completed", "failed", "completed"]
    assert jobs[1].error.startswith("000/metadata.json cannot be read")
    service.close()
    again = make_service()
    assert [again.job(name).status for name in names] == [job.status for job in jobs]


def test_a_preview_that_fails_stops_no_video(service, monkeypatch, caplog):
    def fail(frames, fps):
        raise MemoryError("no room")

    monkeypatch.setattr(watch, "webp", fail)
    (job,) = wait(service, *submit(service, seed=1))
    assert job.status == "completed"
    assert "is sampled without previews" in caplog.text


def test_nothing_is_drawn_that_nobody_looks_at(make_service, monkeypatch):
    seen = []
    service = make_service(start=False)
    monkeypatch.setattr(watch, "webp", lambda frames, fps: seen.append(fps) or b"picture")
    names = submit(service, seed=0, n=2)
    service.start()
    while service.newest(2)[0].waits_or_runs:  # a list is no look at one
        time.sleep(0.01)
    assert seen == []
    assert names


def test_what_a_kill_left_behind_is_removed(make_service, tmp_path):
    first = make_service()
    kept = submit(first, seed=1)
    wait(first, *kept)
    first.close()
    out = tmp_path / "out"
    (out / "20260101-000000-00000000" / "000").mkdir(parents=True)  # no job.json: half removed
    (out / "adapters" / ".0123.part").write_bytes(b"half")
    (out / "my own folder").mkdir()
    again = make_service()
    assert [job.id for job in again.newest(9)] == kept
    assert {path.name for path in out.iterdir()} == {*kept, "adapters", "my own folder"}
    assert list((out / "adapters").iterdir()) == []


def test_a_video_is_where_sample_py_would_have_put_it(service, tmp_path):
    (name,) = submit(service, seed=7, stages=None)
    (job,) = wait(service, name)
    assert job.status == "completed"
    assert job.progress == 100
    assert job.made == service.studio.stages
    folder = tmp_path / "out" / name / "000"
    assert {"translation.mp4", "keyframes.npy", "first_frame.png"} <= {
        path.name for path in folder.iterdir()
    }
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["prompt"], metadata["seed"]) == (PROMPT, 7)


def test_what_was_accepted_is_made_after_a_restart_and_nothing_twice(make_service, sampling):
    first = make_service()
    sampling.stop_after = ("keyframes", 1)
    running, waiting = submit(first, seed=1, stages=None), submit(first, seed=2, steps=5)
    names = [*running, *waiting]
    end = time.monotonic() + 30
    while not sampling.made and time.monotonic() < end:
        time.sleep(0.01)
    before = {name: first.job(name).created for name in names}
    files = {name: (first.job(name).folder / "job.json").read_text() for name in names}
    first.close()
    for name, text in files.items():  # as a kill leaves them
        (first.job(name).folder / "job.json").write_text(text)
    assert sampling.made == [("keyframes", 1)]
    sampling.stop_after = None
    sampling.gate.set()
    second = make_service()
    assert [job.status for job in wait(second, *names)] == ["completed", "completed"]
    assert {name: second.job(name).created for name in names} == before
    assert len(sampling.made) == len(set(sampling.made)) == len(second.studio.stages) + 1


def test_stages_that_were_made_before_a_kill_are_kept(make_service, sampling):
    first = make_service()
    (name,) = submit(first, seed=1)
    wait(first, name)
    job = first.job(name)
    first.close()
    path = job.folder / "job.json"
    fields = json.loads(path.read_text()) | {"status": "queued", "ended": None}
    path.write_text(json.dumps(fields | {"stages": ["keyframes", "interpolation"]}))
    second = make_service()
    wait(second, name)
    assert sampling.made == [("keyframes", 1), ("interpolation", 1)]


def test_a_full_queue_refuses_and_says_for_how_long(make_service):
    service = make_service(max_queue=3, start=False)
    submit(service, n=2)
    with pytest.raises(Refused, match="2 videos wait already") as refused:
        submit(service, n=2)
    assert refused.value.status == 429
    assert 1 <= refused.value.retry_after <= 3600
    submit(service)
    assert len(service.newest(10)) == 3
    with pytest.raises(Refused, match="n is 4, but at most 3 videos may wait") as refused:
        submit(service, n=4)
    assert refused.value.status == 422


def test_a_deleted_job_is_given_up_and_others_of_its_batch_are_made(make_service, sampling):
    service = make_service(start=False)
    names = submit(service, seed=0, n=2)
    sampling.gate.clear()
    service.start()
    wait(service, *names, status=["in_progress"])
    folder = service.job(names[0]).folder
    service.delete(names[0])
    sampling.gate.set()
    (job,) = wait(service, names[1])
    assert job.status == "completed"
    assert not folder.exists()
    with pytest.raises(Refused, match="there is no video"):
        service.job(names[0])


def test_work_ends_when_nobody_wants_it(service, sampling):
    sampling.gate.clear()
    (name,) = submit(service, seed=0)
    wait(service, name, status=["in_progress"])
    folder = service.job(name).folder
    service.delete(name)  # the gate stays closed: only giving up ends it
    (after,) = submit(service, seed=1, steps=3)
    wait(service, after, status=["in_progress"])
    assert not folder.exists()
    sampling.gate.set()
    wait(service, after)
    assert sampling.made == [("keyframes", 1)]


def test_a_job_that_fails_does_not_stop_the_others(make_service, sampling, caplog):
    service = make_service(start=False)
    sampling.failing = {1}
    names = submit(service, seed=0, n=4)
    service.start()
    jobs = wait(service, *names)
    assert [job.status for job in jobs] == ["completed", "failed", "completed", "completed"]
    assert jobs[1].error == "keyframes: the result is not finite"
    sampling.error = ZeroDivisionError("bug")
    (broken,) = wait(service, *submit(service, seed=9))
    assert broken.error == "an error inside the service; its log says more"
    assert "ZeroDivisionError" in caplog.text
    sampling.error = None
    (fine,) = wait(service, *submit(service, seed=10))
    assert fine.status == "completed"


def test_draining_finishes_what_runs_and_keeps_what_waits(make_service, sampling):
    service = make_service()
    sampling.gate.clear()
    running = submit(service, seed=0)
    wait(service, *running, status=["in_progress"])
    waiting = submit(service, seed=1)
    ended = threading.Event()
    service.drain(ended.set)
    with pytest.raises(Refused, match="about to end") as refused:
        submit(service, seed=2)
    assert refused.value.status == 503
    sampling.gate.set()
    assert ended.wait(10)
    assert service.job(running[0]).status == "completed"
    assert service.job(waiting[0]).status == "queued"
    again = make_service()
    (job,) = wait(again, *waiting)
    assert job.status == "completed"


def test_later_stages_go_on_from_a_video(service, sampling):
    first = submit(service, seed=5, stages=["keyframes", "interpolation"])
    wait(service, *first)
    with pytest.raises(Refused, match="super_resolution starts from the result of interpolation"):
        submit(service, stages=["super_resolution"])
    request = VideoRequest(source=first[0], stages=["interpolation"], steps=4)
    (job,) = service.submit(request)
    assert (job.prompt, job.seed, job.made) == (PROMPT, 5, KEYFRAMES)
    (made,) = wait(service, job.id)
    assert made.made == ["keyframes", "interpolation"]
    assert sampling.made[2:] == [("interpolation", 5)]
    source = service.job(first[0])
    for name, steps in ((source, 8), (made, 4)):
        metadata = json.loads((name.folder / "000" / "metadata.json").read_text())
        assert metadata["stages"]["interpolation"]["steps"] == steps
    kept = [np.load(each.folder / "000" / "keyframes.npy") for each in (source, made)]
    np.testing.assert_array_equal(*kept)


def test_progress_reaches_those_who_wait(service, sampling, monkeypatch):
    seen = []

    def change(job, **fields):
        original(job, **fields)
        seen.append((job.id, job.stage, job.done, job.steps, job.progress, bool(job.preview)))

    original = Job.change
    monkeypatch.setattr(Job, "change", change)
    sampling.gate.clear()
    (name,) = submit(service, seed=0, stages=["keyframes", "interpolation"])
    wait(service, name, status=["in_progress"])
    (behind,) = submit(service, seed=1, steps=4)
    assert service.place(service.job(behind)) == 1
    sampling.gate.set()
    wait(service, name, behind)
    own = [entry[1:] for entry in seen if entry[0] == name]
    steps = [entry[:3] for entry in own if entry[0]]
    assert list(dict.fromkeys(steps)) == [
        (stage, done, 2) for stage in ("keyframes", "interpolation") for done in range(3)
    ]
    percents = [entry[3] for entry in own]
    assert percents == sorted(percents)
    assert any(entry[4] for entry in own)
    # What a stage took is expected of it the next time.
    sampling.gate.clear()
    (again,) = submit(service, seed=3)
    wait(service, again, status=["in_progress"])
    end = time.monotonic() + 30
    while service.job(again).stage is None and time.monotonic() < end:
        time.sleep(0.01)
    assert service.job(again).seconds_left is not None


def test_a_full_disk_stops_no_worker(service, monkeypatch, tmp_path):
    def full(path, content):
        raise InputError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_bytes", full)
        with pytest.raises(Refused, match="No space left") as refused:
            submit(service, n=2)
        assert refused.value.status == 507
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapters"]
    (name,) = submit(service, seed=1)
    wait(service, name)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_bytes", full)
        service.delete(name)
    assert service.works
    (job,) = wait(service, *submit(service, seed=2))
    assert job.status == "completed"


def test_unknown_words_are_warned_of(service):
    (name,) = submit(service, prompt="a red zeppelin moving left")
    assert service.job(name).warnings == ["The checkpoint does not know 'zeppelin'."]


def test_a_damaged_job_is_left_out(make_service, tmp_path, caplog):
    service = make_service()
    good, bad = submit(service, seed=1), submit(service, seed=2)
    wait(service, *good, *bad)
    service.close()
    (tmp_path / "out" / bad[0] / "job.json").write_text('{"prompt": 3}')
    again = make_service()
    assert [job.id for job in again.newest(10)] == good
    assert "the video is left out" in caplog.text
    assert (tmp_path / "out" / bad[0] / "000").is_dir()


def test_the_newest_come_first_page_by_page(make_service):
    service = make_service(start=False)
    names = [submit(service, seed=i)[0] for i in range(3)]
    names += submit(service, seed=3, n=2)
    assert names == sorted(names)
    assert [job.id for job in service.newest(3)] == names[:1:-1]
    assert [job.id for job in service.newest(3, after=names[2])] == names[1::-1]
