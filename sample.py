"""Makes videos from prompts; `show1-sample` where the package is installed.

    python sample.py --prompt "a small red circle moving left on a black background"

writes outputs/000/translation.mp4 and the clip of every stage before it; see `--help` for the rest.
"""

import sys

from show1_jax.cli.sample import main

if __name__ == "__main__":
    sys.exit(main())
