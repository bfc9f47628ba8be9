"""How well a model follows prompts of moving shapes; see `show1_jax.cli.shapes`."""

import sys

from show1_jax.cli.shapes import main

if __name__ == "__main__":
    sys.exit(main())
