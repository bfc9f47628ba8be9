"""The sweep of sampling settings, with a cascade that draws instead of sampling."""

import numpy as np
import pytest

from show1_jax.configs import tiny
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.errors import InputError
from show1_jax.media import check_figure, from_uint8
from show1_jax.shapes import drawing, sweep
from show1_jax.shapes import scenes as shapes
from show1_jax.shapes.prompts import draw
from show1_jax.stages.sampling import Sampler
from tests import programs

MEANING = {item.prompt: item.combination for item in draw(6, 3)}


def of(solvers, steps, guidance):
    return {"solvers": solvers, "steps": steps, "guidance": guidance}


class Painter:
    """Obeys DPM-Solver++, and from 10 steps on anything; otherwise paints all clips red."""

    ran: list = []  # noqa: RUF012

    def __init__(self, config, checkpoint, stages):
        assert stages == ["keyframes"]
        self.config = config.keyframes
        solver = SolverConfig("dpm_solver", NoiseSchedule("cosine"), prediction="v")
        self.samplers = {"keyframes": Sampler(None, make_solver(solver, config.keyframes.steps))}

    def check_inputs(self, items, results):
        assert not any(results.has(item, "keyframes") for item in items)

    def run(self, prompts, seeds, results, progress):
        progress("keyframes", 1, 1)
        solver = self.samplers["keyframes"].solver
        assert solver.config.prediction == "v"
        # The noise is where the network is told that it is.
        if solver.config.kind == "ddim":
            assert solver.timesteps[0] == 999
            assert set(np.diff(solver.timesteps)) == {-1000 // solver.num_steps}
        self.ran.append((solver.config.kind, self.config.guidance, solver.num_steps, tuple(seeds)))
        obeys = solver.config.kind == "dpm_solver" or solver.num_steps >= 10
        for item, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            combination = MEANING[prompt]
            if not obeys:
                combination = combination._replace(color="red")
            scene = shapes.random_scene(combination, np.random.default_rng(seed))
            results.save(item, "keyframes", from_uint8(drawing.render(scene, 8, 20, 32)), {})


@pytest.fixture
def painter(monkeypatch):
    monkeypatch.setattr(sweep, "Engine", Painter)
    monkeypatch.setattr(Painter, "ran", [])


def test_every_setting_is_tried_on_the_same_prompts(painter):
    found = sweep.sweep(
        tiny.get_config(), "x", 6, 3, **of(["dpm_solver", "ddim"], [5, 10], [1.0, 4.0])
    )
    seeds = (3, 4, 5, 6, 7, 8)
    assert Painter.ran == [(*key, seeds) for key in found]
    assert len(found) == 8
    red = np.mean([item.combination.color == "red" for item in draw(6, 3)])
    assert red < 1
    for (kind, _, steps), shares in found.items():
        assert shares["color"] == (1 if kind == "dpm_solver" or steps == 10 else red)
        assert shares["direction"] == 1


def test_a_picture(tmp_path):
    found = {("ddim", 1.0, steps): {"all": steps / 20} for steps in (5, 10)}
    sweep.plot(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(InputError, match=r"cannot write .*b\.png: No such file"):
        sweep.plot(found, tmp_path / "none" / "b.png")


def test_unknown_solvers_are_refused(painter):
    with pytest.raises(InputError, match="solver kind 'euler' is not one of ddpm, ddim"):
        sweep.sweep(tiny.get_config(), "x", 1, 0, **of(["euler"], [5], [1.0]))


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_sampled(tmp_path):
    with pytest.raises(InputError, match=r"a\.mp4; give a name that ends in \.png, \.svg or"):
        check_figure(tmp_path / "a.mp4")
    check_figure(tmp_path / "new" / "a.png")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not installed')\n")
    options = ("--checkpoint=none", "--plot=a.png")
    done = programs.run("show1_jax.shapes.sweep", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: drawing needs matplotlib; run pip install matplotlib\n"
    assert not (tmp_path / "a.png").exists()
