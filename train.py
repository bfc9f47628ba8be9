"""Trains the cascade, or one part of it; `show1-train` where the package is installed.

    python train.py --config configs/tiny.py --workdir runs/tiny              # everything, in order
    python train.py --config configs/show1.py:image --workdir runs/show1      # one part

    python train.py --config configs/customize.py --config.video=clip.mp4 \
        --config.prompt="what it shows"                                       # a motion from a clip
"""

import sys

from show1_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
