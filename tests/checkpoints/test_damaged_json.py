"""Configurations that parse, but say what no network or schedule can be."""

import json

import pytest

from show1_jax.checkpoints.networks import network, read_json
from show1_jax.checkpoints.scheduler_config import solver_config
from show1_jax.errors import InputError
from tests.conftest import RELEASE

PATHS = {
    "solver": RELEASE / "show-1-base" / "scheduler" / "scheduler_config.json",
    "unet": RELEASE / "show-1-base" / "unet" / "config.json",
    "t5": RELEASE / "show-1-base" / "text_encoder" / "config.json",
    "vae": RELEASE / "show-1-sr2" / "vae" / "config.json",
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("solver", {"_class_name": ["DDPMScheduler"]}),
        ("solver", {"beta_schedule": ["linear"]}),
        ("solver", {"prediction_type": {"a": 1}}),
        ("solver", {"num_train_timesteps": float("inf")}),
        ("solver", {"num_train_timesteps": 10**30}),
        ("solver", {"steps_offset": 10**400}),
        ("solver", {"steps_offset": float("inf")}),
        ("solver", {"beta_start": float("nan")}),
        ("solver", {"sample_max_value": float("nan")}),
        ("unet", {"down_block_types": [["CrossAttnDownBlock3D"]]}),
        ("unet", {"norm_eps": 10**400}),
        ("unet", {"norm_eps": float("nan")}),
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"block_out_channels": [2**70]}),
        ("t5", {"num_layers": 10**9}),
        ("vae", {"scaling_factor": float("inf")}),
    ],
)
def test_values_of_another_kind_are_refused(kind, change):
    config = read_json(PATHS[kind]) | change
    with pytest.raises(InputError, match=r"^config\.json: [^\n]*$"):
        (solver_config if kind == "solver" else network)(config, "config.json")


def test_nested_json_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read as JSON: it is nested too deeply"):
        read_json(path)
    path.write_text(json.dumps({"a": "é"}), encoding="utf-16")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(path)
