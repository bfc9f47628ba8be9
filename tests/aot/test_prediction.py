"""What a program would take elsewhere, read from what the compiler says."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from show1_jax.aot import prediction
from show1_jax.aot.chips import GPUS, TPUS
from show1_jax.aot.prediction import (
    Program,
    by_stage,
    bytes_per_chip,
    compile_report,
    line,
    predict,
    refused,
    total,
)
from show1_jax.aot.programs import predict_sampling, sampling_programs, training_program
from show1_jax.checkpoints.networks import abstract_params
from show1_jax.configs import show1, tiny
from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPText
from show1_jax.parallel.mesh import AXES, make_mesh
from show1_jax.stages import parts
from show1_jax.training.random_encoders import CLIP, T5
from tests.parallel.test_sharding import ROOT
from tests.stages import made
from tests.training.small import small_config

# Of a peak: JAX rounds up what it gives to arrays, and on a GPU XLA may choose other kernels.
MAX_MISPREDICTED = 0.15


def test_bytes_per_chip_are_those_of_its_share():
    mesh = AbstractMesh((2, 4, 1, 1), AXES)
    spec = PartitionSpec(None, "fsdp")
    split = jax.ShapeDtypeStruct((6, 8), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
    whole = jax.ShapeDtypeStruct((5,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    assert bytes_per_chip({"a": split, "b": [whole, None]}) == 6 * 8 // 4 * 2 + 5 * 4


@pytest.mark.parametrize(("frames", "at_once", "counted"), [(29, 4, 5), (28, 4, 4), (3, 4, 3)])
def test_the_autoencoders_chunks_are_all_counted(frames, at_once, counted):
    """By hand: the compiler counts the loop's body, and the frames left over."""

    def cost(frames, at_once):
        def each(x):
            return jax.lax.map(lambda y: y @ y, x, batch_size=at_once)

        x = jax.ShapeDtypeStruct((frames, 8, 8), jnp.float32)
        return jax.jit(each).lower(x).compile().cost_analysis()["flops"]

    stage = made.translation(frames=frames, vae_frames=at_once)
    with jax.set_mesh(make_mesh({})):
        repeats = next(iter(stage.extras(1, 1))).repeats
    assert repeats == frames / counted
    assert repeats * cost(frames, at_once) == pytest.approx(frames * 2 * 8**3, rel=0.1)


@pytest.fixture
def predicted(monkeypatch, capsys):
    """What is printed for two products of matrices, the second of which runs three times."""
    cpu = dataclasses.replace(TPUS["v5e"], options=None)
    monkeypatch.setattr(prediction, "topology", lambda name: (cpu, jax.devices()[:1]))

    def product(stage, size, runs):
        matrix = jax.ShapeDtypeStruct((size, size), jnp.float32)
        lower = functools.partial(jax.jit(jnp.dot).lower, matrix, matrix)
        return Program(stage, f"of {size}", lower, None, runs=runs)

    def run(as_json):
        made = [product("translation", 64, 1), product("translation", 128, 3)]
        found = predict(
            lambda devices: ((make_mesh({}, devices), p) for p in made), "v5e:1", as_json
        )
        return found, capsys.readouterr().out

    return run


def test_what_is_predicted_is_printed(predicted):
    reports, printed = predicted(False)
    assert [report["flops"] for report in reports] == [
        pytest.approx(2 * size**3, rel=0.1) for size in (64, 128)
    ]
    seconds = [report["roofline_seconds"] for report in reports]
    assert [report["all_runs_seconds"] for report in reports] == [seconds[0], 3 * seconds[1]]
    assert [line.split()[0] for line in printed.splitlines()] == ["stage"] + ["translation"] * 2
    assert "for a batch: at least 0.0 s, and 0.00 GiB" in total(reports)
    (both,) = json.loads(predicted(True)[1])
    assert both["all_runs_seconds"] == pytest.approx(seconds[0] + 3 * seconds[1])
    assert both["roofline_seconds"] == seconds[0]


def unfit(lower):
    """A program whose parameters alone are more than a v5e's memory."""
    whole = NamedSharding(AbstractMesh((1, 1, 1, 1), AXES), PartitionSpec())
    params = jax.ShapeDtypeStruct((2**33,), jnp.float32, sharding=whole)
    return Program("keyframes", "step", lower, params)


def test_parameters_that_do_not_fit_are_told_without_compiling():
    def lower():
        pytest.fail("it was compiled")

    report = compile_report(unfit(lower), TPUS["v5e"], "v5e:1", make_mesh({}, jax.devices()[:1]))
    assert not report["fits"]
    assert report["peak_bytes_per_chip"] == 2**35
    assert "does not fit" in line(report)


def test_what_is_wrong_is_told_before_anything_is_compiled():
    config = show1.get_config()
    with pytest.raises(InputError, match="there is no stage 'translaton': take t5"):
        predict_sampling(config, ["keyframes", "translaton"], "v5e:1", False)
    config.batch_size = 0
    with pytest.raises(InputError, match="batch_size is 0"):
        predict_sampling(config, None, "v5e:1", False)


def test_what_was_found_is_told_although_the_next_program_fails(monkeypatch, capsys):
    def programs(devices):
        yield make_mesh({}, devices), unfit(None)
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "topology", lambda name: (TPUS["v5e"], jax.devices()[:1]))
    with pytest.raises(KeyboardInterrupt):
        prediction.predict(programs, "v5e:1", as_json=True)
    (report,) = json.loads(capsys.readouterr().out)
    assert report["stage"] == "keyframes"


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=[pytest.mark.slow] * (part not in ("vae", "translation")))
        for part in parts()
    ],
)
def test_a_training_is_traced_without_computing_on_chips_that_are_not_there(part):
    config = small_config(part)
    if part != "vae":
        config.train[part].text = "step"
        config.text.t5, config.text.clip = (dataclasses.asdict(each) for each in (T5, CLIP))
    with jax.set_mesh(make_mesh(config.mesh)), jax.transfer_guard("disallow_explicit"):
        assert training_program(config, part).lower().as_text()


def test_the_encoder_of_captions_is_counted_where_steps_run_it():
    config = small_config("translation")
    with jax.set_mesh(make_mesh(config.mesh)):
        cached = bytes_per_chip(training_program(config, "translation").parameters)
        config.train.translation.text = "step"
        with pytest.raises(InputError, match=r"how large clip is \(config.text.clip\)"):
            training_program(config, "translation")
        config.text.clip = dataclasses.asdict(CLIP)
        stepped = bytes_per_chip(training_program(config, "translation").parameters)
    sizes = jax.tree.leaves(abstract_params(CLIPText(CLIP)))
    assert stepped - cached == sum(4 * leaf.size for leaf in sizes)


def test_what_does_not_fit_is_read_from_the_compilers_refusal():
    whole = "Ran out of memory in memory space hbm. Used 24.31G of 15.75G hbm. Exceeded by 8.56G."
    assert refused(f"RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. {whole}", 7) == int(
        24.31 * 2**30
    )
    part = "the total memory required for HLO temporaries (16.02G) exceeds available HBM (15.75G)."
    found = refused(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, {part}", 7)
    assert found == int(16.02 * 2**30) + 7
    assert refused("INTERNAL: something else", 7) is None


def test_a_stage_of_several_programs_is_one_object_with_the_largest_peak():
    def report(stage, program, peak, fits=True):
        sizes = {"peak_bytes_per_chip": peak, "compile_seconds": 1.0, "all_runs_seconds": 3.0}
        return {"stage": stage, "program": program, "fits": fits, **sizes}

    reports = [report("t5", "encode", 5)]
    reports += [report("translation", "denoise", 7), report("translation", "decode", 9, False)]
    one, other = by_stage(reports)
    assert one == reports[0]
    both = {"compile_seconds": 2.0, "all_runs_seconds": 6.0}
    assert other == report("translation", "denoise", 9, False) | both
    reports[-1]["all_runs_seconds"] = None  # it was not compiled
    assert by_stage(reports)[1]["all_runs_seconds"] is None


def test_a_whole_video_is_told_in_one_line():
    reports = [
        {"peak_bytes_per_chip": peak * 2**30, "all_runs_seconds": seconds}
        for peak, seconds in ((2, 1.5), (3, 2.0), (1, 0.5))
    ]
    assert "at least 4.0 s, and 3.00 GiB per chip" in total(reports)
    reports[0]["all_runs_seconds"] = None
    assert "at least ? s" in total(reports)


def test_programs_run_once_for_each_step_of_each_window():
    config = tiny.get_config()
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        runs = {
            (stage, program.name): program.runs
            for stage in ("interpolation", "super_resolution", "translation")
            for program in sampling_programs(config, stage, 1)
        }
    assert runs[("interpolation", "denoise")] == config.interpolation.steps
    assert runs[("super_resolution", "denoise")] == 4 * config.super_resolution.steps
    translation = config.translation
    assert runs[("translation", "denoise")] == translation.strength * translation.steps
    assert runs[("translation", "decode")] == 1


def said(*arguments):
    """What Python prints in a process of its own."""
    command, environment = [sys.executable, *arguments], dict(os.environ)
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def compiled(program, *arguments):
    """What `--aot --json` prints."""
    return json.loads(said(program, *arguments, "--json"))


def benchmarked(*arguments):
    """The line that a benchmark prints, and the bytes of its peak."""
    line = said("-m", "show1_jax.benchmark", *arguments).strip()
    return line, float(re.search(r"peak ([\d.]+) GiB", line)[1]) * 2**30


@pytest.mark.slow
def test_a_benchmark_says_what_it_held():
    line, peak = benchmarked("translation.decode", "--config=configs/tiny.py")
    assert line.startswith("translation.decode: ")
    assert 0 < peak < 2**32


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["keyframes", "super_resolution"])
def test_a_gpu_holds_what_was_predicted(stage, tell):
    """Within `MAX_MISPREDICTED`, of a step in released sizes."""
    kind = jax.devices()[0].device_kind
    card = next((name for name, gpu in GPUS.items() if gpu.name == kind), None)
    if card is None:
        pytest.skip(f"aot/chips.py does not list {kind}")
    config = "--config=configs/show1.py"
    (report,) = compiled("sample.py", config, f"--stages={stage}", f"--aot={card}:1")
    predicted = report["peak_bytes_per_chip"]
    # While XLA compiles, it tries kernels, which takes memory. The second process need not.
    benchmarked(stage, config)
    line, peak = benchmarked(stage, config)
    tell(f"{line}; predicted {predicted / 2**30:.2f} GiB, {report['roofline_seconds']:.4f} s")
    assert abs(peak / predicted - 1) <= MAX_MISPREDICTED


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra tpu-aot")
def test_a_stage_is_compiled_for_a_chip_and_for_four():
    (one,) = compiled("sample.py", "--stages=keyframes", "--aot=v5e:1")
    split = ("--config.mesh.data=1", "--config.mesh.frames=2", "--config.mesh.tensor=2")
    (four,) = compiled("sample.py", "--stages=keyframes", "--aot=v5e:2x2", *split)
    assert (one["chips"], four["chips"]) == (1, 4)
    for report in (one, four):
        assert report["stage"] == "keyframes"
        assert report["fits"]
        assert report["peak_bytes_per_chip"] > report["parameter_bytes_per_chip"]
        assert 0 < report["predicted_mfu"] <= 1
    assert one["collectives"] == {}
    assert {"all-to-all", "all-reduce"} <= four["collectives"].keys()
    assert four["parameter_bytes_per_chip"] < one["parameter_bytes_per_chip"]
    assert one["flops"] / 4 < four["flops"] < one["flops"] / 2


needs_gpu_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs the extra gpu-aot"
)


@pytest.mark.slow
@needs_gpu_compiler
def test_a_stage_is_compiled_for_a_gpu_and_for_two_hosts():
    (one,) = compiled("sample.py", "--stages=keyframes", "--aot=h100:1")
    split = ("--config.mesh.data=1", "--config.mesh.frames=4")
    (four,) = compiled("sample.py", "--stages=keyframes", "--aot=h100:2x2", *split)
    assert (one["chips"], four["chips"]) == (1, 4)
    for report in (one, four):
        assert report["fits"]
        assert report["peak_bytes_per_chip"] > report["parameter_bytes_per_chip"]
        assert report["bytes_accessed"] > 0
        assert 0 < report["predicted_mfu"] <= 1
    assert one["collectives"] == {}
    assert "all-to-all" in four["collectives"]
    assert one["flops"] / 5 < four["flops"] < one["flops"] / 2


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra tpu-aot")
def test_fine_tuning_takes_little_beside_the_parameters():
    config = "--config=configs/customize.py"
    small = ("--config.customize.rank=4", "--config.customize.batch_size=1")
    (report,) = compiled("train.py", config, "--aot=v5e:1", *small)
    assert report["stage"] == "customize"
    assert 0 < report["optimizer_bytes_per_chip"] < report["parameter_bytes_per_chip"] / 10


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra tpu-aot")
@pytest.mark.parametrize(
    ("stage", "gibibytes"),
    [
        ("t5", 1.5),
        ("keyframes", 6),
        ("interpolation", 9),
        ("first_frame", 5),
        ("super_resolution", 8),
        ("translation", 9),
    ],
)
def test_a_released_stage_takes_no_more_of_a_chip(stage, gibibytes):
    (report,) = compiled(
        "sample.py", f"--stages={stage}", "--aot=v5e:1", "--config=configs/show1.py"
    )
    assert report["stage"] == stage
    assert report["peak_bytes_per_chip"] <= gibibytes * 2**30
