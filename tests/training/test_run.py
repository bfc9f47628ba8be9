"""Runs that are interrupted, damaged or misconfigured, on the smallest autoencoder."""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import threading

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from show1_jax.checkpoints.export import export_network
from show1_jax.checkpoints.store import load_params
from show1_jax.errors import InputError, Preempted
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.stages import Autoencoder
from show1_jax.training import loop, run
from show1_jax.training.metrics import Metrics
from show1_jax.training.run import RunFolder
from show1_jax.training.step import init_state
from tests.checkpoints.damage import WAYS, each_damaged
from tests.conftest import largest_file
from tests.stages.test_stages import random_params
from tests.training.small import assert_same, small_config

STEPS = 7
OFTEN = {"steps": STEPS, "save_every": 2, "validate_every": 3, "sample_every": 100, "keep": 9}
TIMES = ("steps_per_second", "examples_per_second", "data_wait", "peak_bytes", "unix_time",
         "wall_seconds", "goodput")  # fmt: skip


pytestmark = pytest.mark.usefixtures("_overtaken_by_failure")


class Interrupted(BaseException):
    """Like KeyboardInterrupt: nothing may catch it."""


@pytest.fixture(scope="module")
def train(data_dir):
    """Trains an autoencoder in a folder."""

    def run(workdir, interrupt_at=None, sections=None, **changes):
        config = small_config("vae", **{"data_dir": data_dir} | OFTEN | changes)
        config.update(sections or {})
        if interrupt_at is None:
            loop.train(config, workdir)
            return
        write = Metrics.write

        def interrupted(self, step, numbers):
            write(self, step, numbers)
            if step == interrupt_at:
                raise Interrupted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Metrics, "write", interrupted)
            with pytest.raises(Interrupted):
                loop.train(config, workdir)

    return run


@pytest.fixture(scope="module")
def straight(train, tmp_path_factory):
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    train(workdir)
    return workdir


@pytest.fixture
def begun(straight, tmp_path):
    """A copy of it, as it was after step 4, to be spoilt."""
    shutil.copytree(straight / "vae", tmp_path / "vae")
    for step in (6, 7):
        shutil.rmtree(tmp_path / "vae" / "checkpoints" / str(step))
    return tmp_path


def own_part(config):
    return Autoencoder.from_config(config)


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "vae" / "checkpoints").iterdir())


def saved(workdir, step=STEPS):
    """State and data position after a step."""
    folder = workdir / "vae" / "checkpoints" / str(step)
    return load_params(folder / "state"), json.loads((folder / "data" / "metadata").read_text())


def lines(workdir):
    """What metrics.jsonl says, but for times."""
    text = (workdir / "vae" / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [
        {k: v for k, v in line.items() if k not in TIMES and not k.startswith("time/")}
        for line in found
    ]


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_what_a_run_leaves(straight):
    assert checkpoints(straight) == [2, 4, 6, 7]
    state, position = saved(straight)
    assert state["step"] == STEPS
    assert position == [{"rows": 2, "iterator": {"next_index": 2 * STEPS}}]  # of the one process
    found = lines(straight)
    assert [line["step"] for line in found if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in found if "validation_loss" in line] == [3, 6, 7]
    assert [p.name for p in (straight / "vae" / "samples").iterdir()] == ["00000007.png"]
    assert json.loads((straight / "vae" / "config.json").read_text())["part"] == "vae"


@pytest.mark.slow
@pytest.mark.smoke
def test_an_interrupted_run_ends_as_if_it_had_not_been(train, straight, tmp_path):
    # What saved nothing may be corrected.
    train(tmp_path, interrupt_at=1, validation_batches=2)
    # Right after a checkpoint, and where one would have been begun.
    for step, expected in ((3, [2]), (6, [2, 4])):
        train(tmp_path, interrupt_at=step)
        assert checkpoints(tmp_path) == expected
    # As the message about a damaged one suggests.
    shutil.rmtree(tmp_path / "vae" / "checkpoints" / "4")
    train(tmp_path)
    for step in (4, 6, STEPS):
        assert_same(saved(tmp_path, step), saved(straight, step))
    assert lines(tmp_path) == lines(straight)
    params = "checkpoint/show-1-sr2/vae/params"
    assert_same(load_params(tmp_path / params), load_params(straight / params))


@pytest.mark.parametrize(
    ("saved", "count", "rows", "found"),
    [
        ([(8, 24)], 1, 8, 24),
        ([(4, 12), (4, 12)], 1, 8, 24),
        ([(8, 24)], 2, 4, 12),
        ([(8, 24), (8, 24)], 2, 4, 12),  # both had all of a batch: parameters were split
    ],
)
def test_data_goes_on_whoever_has_which_part_of_a_batch(saved, count, rows, found):
    positions = [{"rows": own, "iterator": {"next_index": seen}} for own, seen in saved]
    assert loop.position(positions, count, 0, rows) == {"next_index": found}
    workers = [{"rows": own, "iterator": {"workers": []}} for own, _ in saved]
    if count == len(saved) and rows == saved[0][0]:
        assert loop.position(workers, count, 0, rows) == {"workers": []}
    else:
        with pytest.raises(InputError, match="processes with workers"):
            loop.position(workers, count, 0, rows)


def test_sigterm_ends_in_a_complete_checkpoint(train, straight, tmp_path, monkeypatch):
    write = Metrics.write

    def write_and_end(self, step, numbers):
        write(self, step, numbers)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", write_and_end)
        # It came after step 3 was made, so the next is the last.
        with pytest.raises(Preempted, match="vae is saved at step 4: the same command goes on"):
            train(tmp_path, save_every=100)
    assert checkpoints(tmp_path) == [4]
    train(tmp_path)
    assert_same(saved(tmp_path), saved(straight))


def test_told_to_end_in_its_last_step_a_part_is_the_last(train, tmp_path, monkeypatch):
    write, begun = Metrics.write, []

    class FirstPart(loop.Run):
        """The autoencoder, whichever part is asked for."""

        def __init__(self, config, part, workdir):
            begun.append(part.name)
            super().__init__(config, Autoencoder, workdir)

    def write_and_end(self, step, numbers):
        write(self, step, numbers)
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Metrics, "write", write_and_end)
    monkeypatch.setattr(loop, "Run", FirstPart)
    with pytest.raises(Preempted, match="vae was the last for now: the same command goes on"):
        train(tmp_path, sections={"stage": ""})
    assert begun == ["vae"]
    assert (tmp_path / "checkpoint").is_dir()


def test_only_settings_that_a_part_depends_on_are_its_own(train, begun):
    other = {"super_resolution": {"window": 5}, "keyframes": {"height": 8}}
    train(begun, sections=other | {"translation": {"vae_frames": 1}})


@pytest.mark.slow
def test_an_interrupted_run_with_worker_processes(train, tmp_path):
    train(tmp_path / "straight", workers=2)
    train(tmp_path, interrupt_at=3, workers=2)
    assert checkpoints(tmp_path) == [2]
    train(tmp_path, workers=2)
    assert_same(saved(tmp_path)[0], saved(tmp_path / "straight")[0])


@pytest.mark.slow
def test_another_autoencoder_is_not_put_there_in_silence(train, begun, straight, capsys):
    pipeline = begun / "checkpoint" / "show-1-sr2"
    shutil.copytree(straight / "checkpoint", begun / "checkpoint", dirs_exist_ok=True)
    shutil.copytree(pipeline / "vae", pipeline / "unet")
    config = pipeline / "vae" / "config.json"
    marked = json.loads(config.read_text()) | {"scaling_factor": 0.123}
    config.write_text(json.dumps(marked))
    train(begun)  # ends in the same parameters, so translation may go on with this scale
    assert json.loads(config.read_text()) == marked
    assert "trained on another autoencoder" not in capsys.readouterr().out
    train(begun, steps=STEPS + 1)
    assert json.loads(config.read_text())["scaling_factor"] != 0.123
    assert "was trained on another autoencoder: train it again" in capsys.readouterr().out


def test_a_part_never_starts_from_what_it_became_here(train, straight, tmp_path, capsys):
    shutil.copytree(straight / "checkpoint", tmp_path / "checkpoint")
    with pytest.raises(InputError, match="init=vae needs translation/vae, which is neither in"):
        train(tmp_path, init="vae", sections={"checkpoint": ""})
    given = tmp_path / "given"
    shutil.copytree(straight / "checkpoint", given)
    train(tmp_path, init="vae", steps=1, sections={"checkpoint": str(given)})
    assert f"vae starts from {given / 'show-1-sr2' / 'vae'}" in capsys.readouterr().out


def test_a_finished_run_does_nothing_but_export_again(train, begun, straight, capsys):
    shutil.rmtree(begun / "vae")
    shutil.copytree(straight / "vae", begun / "vae")
    train(begun)
    assert "vae goes on from step 7" in capsys.readouterr().out
    assert checkpoints(begun) == [2, 4, 6, 7]
    params = "checkpoint/show-1-sr2/vae/params"
    assert_same(load_params(begun / params), load_params(straight / params))


def test_saving_returns_before_the_checkpoint_is_written(tmp_path, monkeypatch):
    """Neither checksums nor files are waited for."""
    may_go_on, checksums = threading.Event(), run._checksums

    def later(digests, data):
        assert may_go_on.wait(60)
        return checksums(digests, data)

    monkeypatch.setattr(run, "_checksums", later)
    folder = RunFolder(tmp_path, small_config("vae"), own_part(small_config("vae")), {})
    state = init_state(optax.sgd(1.0), {"x": jnp.arange(3.0)}, {})
    with contextlib.closing(folder):
        folder.save(state, [])
        assert not (tmp_path / "checkpoints" / "0").is_dir()
        jax.tree.map(lambda leaf: leaf.delete(), state)  # as a step does that is given it
        may_go_on.set()
        folder.wait()
        restored = folder.restore(jax.eval_shape(lambda: state))
    assert restored[0].trained["x"].tolist() == [0.0, 1.0, 2.0]


def test_only_the_loop_asks_whether_to_end(tmp_path, monkeypatch):
    """Several processes agree by how often each has asked, so nobody else may."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    folder = RunFolder(tmp_path, small_config("vae"), own_part(small_config("vae")), {})
    with contextlib.closing(folder):
        folder.save(init_state(optax.sgd(1.0), {"x": jnp.ones(3)}, {}), [])
    assert (tmp_path / "checkpoints" / "0").is_dir()
    assert asked == []


def test_what_does_not_fit_is_told_what_it_may_change(train, tmp_path, monkeypatch):
    def fail(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(loop.Run, "train", fail)
    with pytest.raises(InputError, match=r"vae does not fit .*: raise accumulate or mesh\.fsdp"):
        train(tmp_path)


def test_a_failure_to_sample_costs_no_steps(train, tmp_path, monkeypatch):
    def fail(self, state, step, metrics):
        raise InputError("the disk is full")

    monkeypatch.setattr(loop.Run, "_sample", fail)
    with pytest.raises(InputError, match="the disk is full"):
        train(tmp_path, sample_every=2)
    assert checkpoints(tmp_path) == [2]


def test_a_run_may_become_longer_and_tell_other_things(train, begun, data_dir):
    shutil.copytree(data_dir, begun / "data")
    changes = {"steps": 5, "log_every": 2, "save_every": 1, "keep": 1, "validate_every": 1}
    changes |= {"sample_every": 5, "threads": 1, "data_dir": str(begun / "data"), "accumulate": 2}
    changes |= {"validation_batches": 2, "validation_batch_size": 1}
    changes |= {"dtype": "auto"}  # float32 on CPUs, as it was begun with
    train(begun, **changes)
    assert checkpoints(begun) == [5]
    found = lines(begun)
    assert [line["step"] for line in found] == [1, 2, 3, 3, 4, 5, 5]
    settings = json.loads((begun / "vae" / "config.json").read_text())["train"]
    assert (settings["steps"], settings["dtype"]) == (5, "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "train.vae.batch_size is 2 there and 4 here.*repeat the flags"),
        ({"b2": 0.5, "seed": 1}, "train.vae.b2 is .*; train.vae.seed is 0 there"),
        ({"sections": {"translation": {"fps": 5.0}}}, "translation.fps is 7.5 there and 5.0"),
        ({"height": 16}, "train.vae.height is 8 there and 16"),
    ],
)
def test_other_settings_need_another_folder(train, begun, changes, message):
    before = (begun / "vae" / "config.json").read_bytes()
    with pytest.raises(InputError, match=message) as error:
        train(begun, **changes)
    assert "give another --workdir" in one_line(error)
    assert (begun / "vae" / "config.json").read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    train, begun, straight, monkeypatch
):
    compile_step = loop.compile_step

    def poisoned(*arguments):
        step = compile_step(*arguments)

        def function(*arguments):
            state, metrics = step(*arguments)
            return state._replace(
                trained=jax.tree.map(lambda x: x * jnp.nan, state.trained)
            ), metrics

        return function

    monkeypatch.setattr(loop, "compile_step", poisoned)
    with pytest.raises(InputError, match="the loss of vae is not finite at step 6") as error:
        train(begun)
    assert "the last checkpoint is kept" in one_line(error)
    assert checkpoints(begun) == [2, 4]
    assert [line["step"] for line in lines(begun)] == [1, 2, 3, 3, 4, 5]
    assert_same(saved(begun, 4), saved(straight, 4))


def test_a_disk_that_is_full_when_saving_begins(begun, data_dir, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = small_config("vae", data_dir, **OFTEN)
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    inputs = json.loads((begun / "vae" / "config.json").read_text())["inputs"]
    with contextlib.closing(RunFolder(begun / "vae", config, own_part(config), inputs)) as folder:
        message = "vae cannot be written: No space left on device; the run can go on from step 4$"
        with pytest.raises(InputError, match=message):
            folder.save(init_state(optax.sgd(1.0), {}, {}), {})


def test_a_disk_that_is_full_while_a_checkpoint_is_written(train, begun, straight, monkeypatch):
    save = ocp.CheckpointManager.save

    def limited(self, *arguments, **settings):
        limit.enter_context(largest_file(10_000))
        return save(self, *arguments, **settings)

    monkeypatch.setattr(ocp.CheckpointManager, "save", limited)
    with contextlib.ExitStack() as limit, pytest.raises(InputError) as error:
        train(begun)
    expected = "vae cannot be written: File too large; the run can go on from step 4"
    assert one_line(error).endswith(expected)
    assert_same(saved(begun, 4), saved(straight, 4))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run's folder that holds a checkpoint of a small state, and how to restore it."""
    workdir = tmp_path_factory.mktemp("kept")
    keys = jax.random.split(jax.random.key(0), 3)
    params = {str(i): {"kernel": jax.random.normal(key, (32, 16))} for i, key in enumerate(keys)}
    state = init_state(optax.sgd(1.0), params, {})
    position = [{"rows": 2, "iterator": {"next_index": 14}}]

    def opened():
        return contextlib.closing(
            RunFolder(workdir, small_config("vae"), own_part(small_config("vae")), {})
        )

    def restored():
        with opened() as folder:
            return folder.restore(jax.eval_shape(lambda: state))

    with opened() as folder:
        folder.save(state, position)
    assert_same(restored(), (state, position))
    return workdir / "checkpoints" / "0", restored


def named(error, checkpoint):
    """Whether one line says which checkpoint is damaged, and what to do."""
    text = str(error)
    assert "\n" not in text
    assert text.startswith(f"{checkpoint} cannot be restored: ")
    assert text.endswith("; remove it to go on from the one before")


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_file_is_named_or_does_not_matter(kept, way, noise):
    checkpoint, restored = kept
    expected, refused = restored(), set()
    for path in each_damaged(checkpoint, way):
        try:
            assert_same(restored(), expected)
        except InputError as error:
            refused.add(path)
            named(error, checkpoint)
    state = checkpoint / "state"
    numbers = max(state.rglob("*"), key=lambda path: path.stat().st_size)
    needed = {numbers, state / "_METADATA", state / "manifest.ocdbt"}
    assert needed | {checkpoint / name / "metadata" for name in ("data", "digests")} <= refused
    assert not noise()


@pytest.mark.parametrize("missing", ["state/manifest.ocdbt", "state/_METADATA", "state/d", "state",
                                     "data", "digests/metadata", ""])  # fmt: skip
def test_a_file_that_is_missing_is_named(kept, missing):
    checkpoint, restored = kept
    path, away = checkpoint / missing, checkpoint.parent.parent / "away"
    path.rename(away)
    if not missing:
        checkpoint.mkdir()
    with pytest.raises(InputError) as error:
        restored()
    if not missing:
        checkpoint.rmdir()
    away.rename(path)
    named(error.value, checkpoint)


def test_a_checkpoint_without_digests_is_restored(kept):
    """As of earlier versions."""
    checkpoint, restored = kept
    expected = restored()
    away = (checkpoint / "digests").rename(checkpoint.parent.parent / "away")
    assert_same(restored(), expected)
    away.rename(checkpoint / "digests")


def test_a_run_that_cannot_go_on_says_so(train, begun):
    checkpoint = begun / "vae" / "checkpoints" / "4"
    shutil.rmtree(checkpoint / "state" / "d")
    with pytest.raises(InputError) as error:
        train(begun)
    named(error.value, checkpoint)


def test_a_folder_has_one_run_at_a_time(train, tmp_path, monkeypatch):
    config, workdir = small_config("vae"), tmp_path / "vae"
    with contextlib.closing(RunFolder(workdir, config, own_part(config), {})):
        with pytest.raises(InputError, match="vae is in use by another program") as error:
            train(tmp_path)
        assert f"(process {os.getpid()} on {socket.gethostname()})" in one_line(error)
        # Of a run's processes the first has it.
        with monkeypatch.context() as patch:
            patch.setattr("show1_jax.training.run.first", lambda: False)
            RunFolder(workdir, config, own_part(config), {}).close()
    # One that is refused, or cannot begin, leaves it to the next.
    with monkeypatch.context() as patch:
        patch.setattr(loop.data, "training_batches", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path)
    RunFolder(workdir, config, own_part(config), {}).close()


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_settings_are_named(train, begun, content):
    (begun / "vae" / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"vae/config\.json") as error:
        train(begun)
    one_line(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6, "accumulate": 4}, "batch_size 6 cannot be split into 4 parts"),
        ({"accumulate": 0}, "train.vae.accumulate is 0, but must be at least 1"),
        ({"steps": 0}, "train.vae.steps is 0"),
        ({"save_every": 0}, "train.vae.save_every is 0"),
        ({"trainable": "half"}, "trainable is 'half', not one of all, temporal"),
        ({"trainable": "temporal"}, "'temporal', but the network has nothing of that kind"),
        ({"dataset": ("nowhere",)}, "nowhere is not a folder"),
        ({"dtype": "float16"}, "'float16' is not one of float32, bfloat16, auto"),
        (
            {"init": "keyframes", "sections": {"checkpoint": ""}},
            "train.vae.init=keyframes needs keyframes/unet, which is neither in .* nor in",
        ),
        (
            {"init": "vae", "sections": {"checkpoint": ""}},
            "train.vae.init=vae needs translation/vae, which is neither in .* nor in",
        ),
        ({"kl_weight": -1.0}, "train.vae.kl_weight is -1.0, but must be 0 to 1000"),
        ({"init": "/nowhere/vae"}, "/nowhere/vae has no params/"),
        ({"clips": 0}, "but each needs at least 1"),
        ({"learning_rate": float("inf")}, "train.vae.learning_rate is inf, but must be 0 to"),
        ({"ema_decay": float("nan")}, "train.vae.ema_decay is nan, but must be 0 to 1"),
    ],
)
def test_bad_settings_are_refused(train, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        train(tmp_path, **changes)
    one_line(error)


def test_unknown_parts_and_remat_are_refused(data_dir, tmp_path):
    config = small_config("keyframes", data_dir, remat="sometimes")
    with pytest.raises(InputError, match=r"keyframes.remat is 'sometimes', not one of nothing"):
        loop.train(config, tmp_path)
    config = small_config("keyframes", data_dir, trainable="temporal")
    with pytest.raises(InputError, match="freeze what init does not give, conv_in/bias for one"):
        loop.train(config, tmp_path)
    sizes = config.keyframes.unet.to_dict() | {"temporal": False, "temporal_heads": "width"}
    image = UNet(UNetConfig(**sizes))
    export_network(tmp_path / "given", "keyframes", image, random_params(image))
    config.train.keyframes.update(
        init=str(tmp_path / "given" / "show-1-base" / "unet"), trainable="temporal_attention"
    )
    with pytest.raises(InputError, match=r"init does not give, .*temporal_conv.* for one"):
        loop.train(config, tmp_path)
    config = small_config("vae", data_dir)
    config.train.vae.height, config.translation.vae.channels = 9, (4, 4)
    with pytest.raises(InputError, match="needs a width and height that are multiples of"):
        loop.train(config, tmp_path)
    config = small_config("first_frame", data_dir)
    config.train.first_frame.max_noise_level = config.first_frame.noise_level
    with pytest.raises(InputError, match="sampled at noise_level 50, which it would never see"):
        loop.train(config, tmp_path)
    config = small_config("first_frame", data_dir)
    config.super_resolution.height += 1
    with pytest.raises(InputError, match="multiples of the keyframes', 6x4"):
        loop.train(config, tmp_path)
    config.stage = "sound"
    with pytest.raises(InputError, match="no part 'sound' to train; take vae, image, keyframes"):
        loop.train(config, tmp_path)


def test_a_network_of_other_settings_is_no_start(checkpoint, data_dir, tmp_path):
    config = small_config("keyframes", data_dir)
    config.checkpoint = str(checkpoint)
    unet = UNet(UNetConfig(**config.keyframes.unet.to_dict() | {"activation": "gelu"}))
    export_network(tmp_path, "keyframes", unet, random_params(unet))
    config.train.keyframes.init = str(tmp_path / "show-1-base" / "unet")
    with pytest.raises(InputError, match="cannot initialise this network: activation is gelu"):
        loop.train(config, tmp_path / "run")
