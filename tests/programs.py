"""Runs programs as `subprocess.run` does, but without waiting for their imports each time.

What imports print, and what is done at exit, is not seen: of `sample.py` and `train.py` other
tests see it. JAX's environment variables are those of the first call.
"""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

# Processes are forked from one that has imported what programs import, and nothing more.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "show1_jax.benchmark",
        "show1_jax.evaluation.cascade",
        "show1_jax.generate",
        "show1_jax.parallel.programs",
        "show1_jax.training.loop",
    ]
)


def _child(command: list[str], cwd: str, environment: dict, files: list[str]) -> None:
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


def run(program: object, *arguments: object, cwd: object = ".") -> subprocess.CompletedProcess:
    """What `python PROGRAM ARGUMENTS` says, or with `-m` of a module, started in `cwd`."""
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.NamedTemporaryFile("r")) for _ in range(2))
        command = [str(program), *map(str, arguments)]
        files = [out.name, err.name]
        process = CONTEXT.Process(target=_child, args=(command, str(cwd), dict(os.environ), files))
        process.start()
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode, out.read(), err.read())
