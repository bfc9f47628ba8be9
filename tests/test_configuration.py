"""Configs that are none, as files and as what they return."""

import pytest
from ml_collections import ConfigDict

from examples import emoji
from show1_jax.configs import customize, show1, tiny
from show1_jax.configuration import build, check_config
from show1_jax.errors import InputError
from show1_jax.models.vae import VAEConfig


@pytest.mark.parametrize(
    "config",
    [show1.get_config("vae"), tiny.get_config(), customize.get_config("show1"), emoji.get_config()],
    ids=["show1", "tiny", "customize", "emoji"],
)
def test_configs_that_are_there_are_good(config):
    check_config(config, tiny.get_config())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "keyframes.frames",
            "many",
            "keyframes.frames is 'many', but must be a value like 8",
        ),
        ("keyframes.frames", 2.5, "config.keyframes.frames is 2.5, but must be a value like 8"),
        ("keyframes.frames", 10**12, "but must be between -2147483648 and 4294967295"),
        (
            "keyframes.guidance",
            float("inf"),
            "config.keyframes.guidance is inf, but must be finite",
        ),
        ("keyframes", 5, "config.keyframes is 5, but must be a ConfigDict"),
        (
            "keyframes.unet.channels",
            ("a",),
            "unet.channels is 'a', but must be a value like 32",
        ),
        (
            "keyframes.unet.channels",
            3,
            "unet.channels is 3, but must be a value like",
        ),
        ("train.vae.dataset", ("a\0b",), "which is not valid text"),
        ("checkpoint", "\ud800", "which is not valid text"),
        (
            "text.clean_captions",
            1,
            "text.clean_captions is 1, but must be a value like False",
        ),
    ],
)
def test_settings_of_another_type_are_named(key, value, message):
    config = tiny.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message):
        check_config(config, tiny.get_config())


@pytest.mark.parametrize("key", ["keyframes", "text.t5_tokens", "train.vae.batch_size"])
def test_missing_settings_are_named(key):
    config = tiny.get_config()
    section, names = config, key.split(".")
    for name in names[:-1]:
        section = section[name]
    del section[names[-1]]
    with pytest.raises(InputError, match=f"config.{key} is missing"):
        check_config(config, tiny.get_config())


def test_what_is_no_config_is_refused():
    for wrong in (None, 5, {"stage": ""}):
        with pytest.raises(InputError, match="but must be a ConfigDict"):
            check_config(wrong, tiny.get_config())


def test_sections_become_dataclasses():
    assert build(VAEConfig, ConfigDict({"channels": (4,)}), "vae") == VAEConfig(channels=(4,))
    with pytest.raises(InputError, match=r"config\.vae has no setting 'layers'; its settings are"):
        build(VAEConfig, ConfigDict({"layers": 2}), "vae")
