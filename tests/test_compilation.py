"""Where compiled programs are kept."""

import pwd

import jax
import pytest

from show1_jax.compilation import use_compilation_cache


@pytest.fixture
def homeless(monkeypatch):
    """As of a user ID that the system does not list, in a container for one."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_without_a_home_folder_programs_are_compiled_all_the_same(
    homeless, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "show1_jax")
    # What JAX was told stays.
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "show1_jax")
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("XDG_CACHE_HOME")
    use_compilation_cache()
    assert "set XDG_CACHE_HOME" in caplog.text
