"""Recordings of the original PyTorch code, and how tests reach them.

`goldens/` holds one folder per recorded case (see its `meta.json`), `release/`
a whole tiny checkpoint in the released layout. Networks whose weights are the
released ones are not stored twice.
"""

import contextlib
import dataclasses
import functools
import gc
import json
import os
import re
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

# Compiling takes most of the suite's time. Its programs are small and run a few times, so XLA is
# told to spare its efforts here and in the processes that tests start (=0 to have it try). Before
# JAX is imported.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's later releases made these emitters faster and no longer let one choose.
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}"

GOLDENS = Path(__file__).parent / "goldens"
RELEASE = Path(__file__).parent / "release"
KEPT_PROGRAMS = "SHOW1_TESTS_COMPILED"  # a folder

# Of predictions that were recorded, as a share of them (root mean square): twice the largest that
# was measured of the denoisers on CPUs, of float32 what the order of sums may make of it.
MAX_RMS = {"float32": 1e-4, "bfloat16": 5.4e-2, "float16": 8e-3}

IN_RELEASE = {
    "unet3d_base": "show-1-base/unet",
    "unet3d_interp": "show-1-interpolation/unet",
    "unet3d_sr1": "show-1-sr1/unet",
    "unet3d_latent": "show-1-sr2/unet",
    "vae": "show-1-sr2/vae",
    "unet2d_if_sr": "IF-II-L-v1.0/unet",
}


@dataclasses.dataclass(frozen=True)
class Golden:
    """One recorded case; arrays are channel-first, as PyTorch recorded them."""

    folder: Path
    config: dict
    meta: dict
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    def weights(self) -> dict[str, np.ndarray]:
        """The recorded weights under their PyTorch keys, in fp32."""
        stored = load_file(self.folder / "weights.safetensors")
        return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in stored.items()}


def golden(name: str) -> Golden:
    folder = GOLDENS / name
    return Golden(
        folder,
        json.loads((folder / "config.json").read_text()),
        json.loads((folder / "meta.json").read_text()),
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )


def network_folder(name: str) -> Path:
    """The folder with `config.json` and weights of a recorded network."""
    return RELEASE / IN_RELEASE[name] if name in IN_RELEASE else GOLDENS / name


@functools.cache
def loaded(folder: Path):
    """Module and parameters, as stored, of a PyTorch network folder. Not to be changed."""
    from show1_jax.convert import load_diffusers

    return load_diffusers(folder)


def assert_close(actual, expected, tolerance: float, name: str = "") -> None:
    """Compares within `tolerance` times the largest absolute expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{name}: relative error {error:.2e} exceeds {tolerance:.1e}"


def assert_precise(actual, expected, dtype: object, name: str = "") -> str:
    """Compares what a network computed in `dtype` with its recording; returns the error."""
    dtype = np.dtype(dtype).name
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
    error = np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean())
    told = f"{name} in {dtype}: {error:.2e} of the recording (rms)"
    assert error <= MAX_RMS[dtype], f"{told}, more than {MAX_RMS[dtype]:.1e}"
    return told


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Tests of a GPU take turns, so that its speed can be told, with programs as users have them.

    They start processes that use the same GPU, so none takes most of its memory at once.
    """
    if config.option.markexpr == "gpu":
        config.option.numprocesses = 0
        config.option.reportchars += "s"  # why tests were skipped
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() != "gpu":
            pytest.skip("JAX has no GPU")


@pytest.fixture
def tell(capsys):
    """Prints a figure, whether the test passes or not."""

    def tell(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="")

    return tell


@pytest.fixture(autouse=True, scope="session")
def _exact_matmuls():
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True, scope="session")
def _compile_once(tmp_path_factory):
    """Programs that are the same in several tests, and in those that start others.

    `tests/mutants.py` keeps them from one run of tests to the next.
    """
    import jax

    folder = os.environ.get(KEPT_PROGRAMS) or str(tmp_path_factory.mktemp("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="module")
def _overtaken_by_failure():
    """Orbax's other reads and writes go on, with nobody waiting for them, when one has failed."""
    from show1_jax.cli.program import OVERTAKEN

    hook = sys.unraisablehook

    def quiet(found):
        if not re.search(OVERTAKEN, str(found.exc_value)):
            hook(found)

    sys.unraisablehook = quiet
    yield
    gc.collect()
    sys.unraisablehook = hook


@pytest.fixture
def noise(capsys, monkeypatch):
    """Whether a program would have shown a traceback of what nobody waits for."""
    from show1_jax.cli.program import unraisable

    monkeypatch.setattr(sys, "unraisablehook", unraisable)

    def found() -> bool:
        gc.collect()
        return bool(re.search("Exception ignored|Traceback", capsys.readouterr().err))

    return found


@contextlib.contextmanager
def largest_file(size: int):
    """Files cannot grow beyond `size` bytes: the nearest thing to a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def converted_release(tmp_path_factory) -> Path:
    """The whole tiny release in our layout, converted once."""
    from show1_jax.cli.convert import main

    folder = tmp_path_factory.mktemp("converted") / "release"
    assert main([str(RELEASE), str(folder), "--verify"]) == 0
    return folder
