"""Paths as users give them."""

import sys
from pathlib import Path

import pytest

import show1_jax
from show1_jax.errors import InputError
from show1_jax.paths import as_path, in_bucket, local_path


@pytest.mark.parametrize("path", ["az://b/x", Path("az://b/x"), "hdfs://b", "file:///tmp/x"])
def test_paths_with_other_schemes_are_refused(path):
    with pytest.raises(InputError, match="copy it to or from a local disk") as found:
        as_path(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("path", ["gs://b/x", Path("gs://b/x"), "s3://b/x"])
def test_buckets_are_paths_where_they_can_be(path, monkeypatch):
    found = as_path(path)
    assert str(found) == str(path).replace(":/", "://").replace(":///", "://")
    assert in_bucket(found)
    assert in_bucket(found / "y")
    assert found.parent / "x" == found == found.absolute()
    with pytest.raises(InputError, match="is in a bucket, but this must be on a local disk"):
        local_path(path)
    monkeypatch.delitem(sys.modules, "show1_jax.buckets")
    monkeypatch.delattr(show1_jax, "buckets")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"needs gcsfs; run pip install 'show1-jax\[cloud\]'$"):
        as_path(path)


@pytest.mark.parametrize("path", ["x", "/tmp/a:b/c", "a: b/c", Path("C:/x"), "12:/x"])
def test_other_paths_stay_as_they_are(path):
    assert str(as_path(path)) == str(path)
    assert not in_bucket(path)


def test_the_home_folder_is_filled_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(as_path("~/x")) == "/home/me/x"
    with pytest.raises(InputError, match=r"~nobody-at-all/x: there is no such home folder"):
        as_path("~nobody-at-all/x")
