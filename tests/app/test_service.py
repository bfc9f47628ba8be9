"""The queue, the worker and what is on disk."""

import json
import threading

import numpy as np
import pytest

from show1_jax.app import jobs
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
    sampling.gate.clear()
    running, waiting = submit(first, seed=1, stages=None), submit(first, seed=2, steps=3)
    sampling.begun.wait(10)
    wait(first, *running, status=["in_progress"])
    before = {name: first.job(name).created for name in (*running, *waiting)}
    first.close()  # as a kill does, it leaves job.json as it is
    sampling.gate.set()
    made_before = list(sampling.made)
    second = make_service()
    wait(second, *running, *waiting)
    assert {name: second.job(name).status for name in before} == dict.fromkeys(before, "completed")
    assert {name: second.job(name).created for name in before} == before
    made = sampling.made[len(made_before) :]
    assert len(set(sampling.made)) == len(sampling.made)
    assert ("translation", 1) in made


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
    while service.job(again).stage is None:
        pass
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
