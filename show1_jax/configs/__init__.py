"""The folder `configs` beside this package, in a clone. A wheel has its files here instead.

`pyproject.toml` takes the files of the package `show1_jax.configs` from that folder.
"""

from etils.epath import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
