"""`python -m show1_jax.app`; see `show1_jax.cli.app`."""

import sys

from show1_jax.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
