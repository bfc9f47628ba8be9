"""The measurement itself, on the tiny release."""

import re

import pytest

from tests.text.t5_xxl import measure


@pytest.mark.slow  # two processes that import everything
def test_an_encoding_is_measured(converted_release):
    measured = measure(converted_release / "show-1-base")
    assert min(measured.read, measured.compute, measured.encode) > 0
    assert measured.encode > measured.compute
    assert 2**27 < measured.memory < 2**31
    assert re.search(r"encode \d+\.\d s: \d+\.\d\d of both; peak of the process 0\.", str(measured))
