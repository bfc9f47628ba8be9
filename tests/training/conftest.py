"""What the tests of training share: compiled programs, datasets, a text encoder."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from show1_jax.data import moving_shapes
from show1_jax.text import tiny


@pytest.fixture(autouse=True, scope="package")
def _compile_quickly_and_once(tmp_path_factory):
    """The same step is compiled in many tests, and runs only a few times in each."""
    cached = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in cached}

    def configure(settings, quickly):
        for name, value in settings.items():
            jax.config.update(name, value)
        jax.config.update("jax_disable_most_optimizations", quickly)
        compilation_cache.reset_cache()

    configure(cached, True)
    yield
    configure(before, False)


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory):
    """A checkpoint that has a T5 encoder and its tokenizer alone."""
    folder = tmp_path_factory.mktemp("encoder") / "checkpoint"
    tiny.make(folder)
    return folder


@pytest.fixture(scope="package")
def data_dir(tmp_path_factory, checkpoint):
    """Where datasets are built and captions encoded, once.

    The captions are one for each combination: encoding all takes seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_shapes, "TEMPLATES", moving_shapes.TEMPLATES[:1])
        yield tmp_path_factory.mktemp("data")
