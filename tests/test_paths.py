"""Paths as users give them."""

from pathlib import Path

import pytest

from show1_jax.errors import InputError
from show1_jax.paths import local_path


@pytest.mark.parametrize("path", ["gs://b/x", Path("gs://b/x"), "s3://b", "file:///tmp/x"])
def test_paths_with_a_scheme_are_refused(path):
    with pytest.raises(InputError, match="copy it to or from a local disk") as found:
        local_path(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("path", ["x", "/tmp/a:b/c", "a: b/c", Path("C:/x"), "12:/x"])
def test_other_paths_stay_as_they_are(path):
    assert local_path(path) == Path(path)


def test_the_home_folder_is_filled_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/x") == Path("/home/me/x")
    with pytest.raises(InputError, match=r"~nobody-at-all/x: there is no such home folder"):
        local_path("~nobody-at-all/x")
