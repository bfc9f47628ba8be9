"""Runs programs as `subprocess.run` does, but without waiting for their imports each time.

What imports print, and what is done at exit, is not seen: of `sample.py` and `train.py` other
tests see it. JAX's environment variables are those of the first call.
"""

import contextlib
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# Processes are forked from one that has imported what programs import, and nothing more.
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "show1_jax.benchmark.ours",
    "show1_jax.config_files",
    "show1_jax.shapes.evaluation",
    "show1_jax.generate",
    "show1_jax.aot.programs",
    "show1_jax.training.loop",
]
CONTEXT.set_forkserver_preload(PRELOADED)


def _child(
    command: list[str], cwd: str, environment: dict, files: list[str], memory: int | None
) -> None:
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv, program = command, command[0]
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = cwd
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def run(
    program: object,
    *arguments: object,
    cwd: object = ".",
    environment: Mapping[str, str] | None = None,
    limit: float | None = None,
    memory: int | None = None,
) -> subprocess.CompletedProcess:
    """What `python PROGRAM ARGUMENTS` says, or with `-m` of a module.

    Args:
      program: a file that ends in .py, or a module.
      *arguments: of the program.
      cwd: where it is started.
      environment: its environment variables; this process's by default.
      limit: seconds after which it is killed.
      memory: bytes that it may have.

    Raises:
      subprocess.TimeoutExpired: if it was killed at its limit.
    """
    with contextlib.ExitStack() as stack:
        out, err = (
            stack.enter_context(tempfile.NamedTemporaryFile("r", errors="backslashreplace"))
            for _ in range(2)
        )
        command = [str(program), *map(str, arguments)]
        environment = dict(os.environ if environment is None else environment)
        given = (command, str(cwd), environment, [out.name, err.name], memory)
        process = CONTEXT.Process(target=_child, args=given)
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, limit or 0, out.read(), err.read())
        return subprocess.CompletedProcess(command, process.exitcode, out.read(), err.read())
