"""The whole cascade: every part is trained on what the one before left, and sampled together."""

import av
import numpy as np
import pytest

from show1_jax.checkpoints.released import find_stages
from show1_jax.checkpoints.store import load_params
from show1_jax.cli import convert
from show1_jax.generate import generate
from show1_jax.stages import names, parts
from show1_jax.training import loop
from tests.training.small import assert_same, small_config


@pytest.mark.slow
@pytest.mark.smoke
def test_everything_in_order(data_dir, tmp_path, capsys):
    config = small_config("vae", data_dir)
    config.stage, config.checkpoint = "", ""  # it makes its own text encoders
    config.train.keyframes.init, config.train.interpolation.init = "image", "keyframes"
    loop.train(config, tmp_path)
    # Again: everything is there and is only exported anew.
    loop.train(config, tmp_path)
    output = capsys.readouterr().out
    for part in parts():
        folder = tmp_path / "image" if part == "image" else tmp_path
        assert output.count(f"{part} is trained: {folder / 'checkpoint'}") == 2
        assert f"{part} goes on from step 2" in output
        assert (tmp_path / part / "samples" / "00000002.png").is_file()

    trained = tmp_path / "checkpoint"
    stages = find_stages(trained)
    assert [stage for stage in names() if stage in stages] == names()
    # The T5 encoder is there once.
    assert [name for name, stage in stages.items() if stage.has("text_encoder")] == [
        "keyframes",
        "translation",
    ]
    assert convert.main([str(trained), str(tmp_path / "torch"), "--to-torch", "--verify"]) == 0
    assert convert.main([str(tmp_path / "torch"), str(tmp_path / "back")]) == 0
    for folder in stages.values():
        for params in folder.folder.glob("*/params"):
            back = tmp_path / "back" / params.relative_to(trained)
            assert_same(load_params(back), load_params(params))

    generate(
        config=config, checkpoint=str(trained), prompts=["a small red circle", "a blue square"],
        prompts_file=None, seeds=[0], out=tmp_path / "out", stages=None, overrides={},
    )  # fmt: skip
    section = config.translation
    for item in ("000", "001"):
        for stage in names()[:-1]:
            assert np.isfinite(np.load(tmp_path / "out" / item / f"{stage}.npy")).all()
        with av.open(str(tmp_path / "out" / item / "translation.mp4")) as file:
            shapes = [frame.to_ndarray(format="rgb24").shape for frame in file.decode(video=0)]
        assert shapes == [(section.height, section.width, 3)] * 5
