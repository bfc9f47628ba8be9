"""Seconds and peak memory of what the cascade runs; see `show1_jax.cli.benchmark`."""

import sys

from show1_jax.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
