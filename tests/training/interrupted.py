"""A config for `train.py`: small, but with all that a resumed run could get wrong.

python train.py --config tests/training/interrupted.py:keyframes --workdir DIR
"""

from ml_collections import ConfigDict

from tests.training.small import small_config


def get_config(stage: str = "keyframes") -> ConfigDict:
    """Four hundred steps with dropout, in parts, saved every few."""
    return small_config(
        stage,
        dropout=True,
        steps=400,
        batch_size=4,
        accumulate=2,
        clips=50,
        log_every=5,
        save_every=20,
        validate_every=150,
        sample_every=1000,
    )
