"""What the tests of training share: compiled programs, datasets, a text encoder."""

import pytest

from show1_jax.shapes import moving_shapes
from show1_jax.training import random_encoders


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory):
    """A checkpoint that has text encoders and their tokenizers alone."""
    folder = tmp_path_factory.mktemp("encoder") / "checkpoint"
    random_encoders.make(folder, moving_shapes.captions())
    return folder


@pytest.fixture(scope="package")
def data_dir(tmp_path_factory, checkpoint):
    """Where datasets are built and captions encoded, once.

    The captions are one for each combination: encoding all takes half a minute.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_shapes, "TEMPLATES", moving_shapes.TEMPLATES[:1])
        patch.setattr(moving_shapes, "SPEEDS", {"": (0, 1)})
        patch.setattr(moving_shapes, "motions", lambda direction: ["straight"])
        yield tmp_path_factory.mktemp("data")
