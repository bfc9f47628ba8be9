"""Where compiled programs are kept, and what they are compiled for."""

import os

import jax
from absl import logging

from show1_jax.errors import why
from show1_jax.paths import as_path, in_bucket


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, or where JAX was told already, which may be a bucket.

    Raises:
      InputError: if JAX was told of a place that is not supported.
    """
    told = getattr(jax.config, "jax_compilation_cache_dir", None)
    if told and in_bucket(place := as_path(told)):  # which also lets JAX's paths reach buckets
        try:
            place.exists()
        except OSError as error:
            logging.warning("%s: %s; compiled programs are not kept", told, why(error))
            jax.config.update("jax_compilation_cache_dir", None)
        if "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES" not in os.environ:
            # XLA for GPUs would keep what it found by trying out kernels at the same place. It
            # knows no buckets, and ends the program with UNIMPLEMENTED.
            jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not told:
        # Without a home folder, as of a user ID that the system does not list, "~" stays.
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if cache.startswith("~"):
            logging.warning(
                "There is no home folder to keep compiled programs in: set XDG_CACHE_HOME"
            )
            return
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "show1_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def only_compile() -> None:
    """Keeps JAX from looking for the TPU whose compiler is installed."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Else one process at a time may hold the compiler, as if it were a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
