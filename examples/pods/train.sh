#!/usr/bin/env bash
# What each process of a training run runs. Flags of show1-train may follow, and override these.
#
#     BUCKET=gs://my-bucket bash examples/pods/train.sh --coordinator=auto
set -euo pipefail
: "${BUCKET:?Set it to where clips, checkpoints and runs are, such as gs://my-bucket}"
# A machine that replaces another has an empty disk.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$BUCKET/compiled}"

# With exec, SIGTERM reaches the program itself.
exec show1-train --config configs/show1.py:keyframes \
    --workdir "$BUCKET/runs/show1" \
    --config.checkpoint="$BUCKET/checkpoints/show1" \
    --config.train.keyframes.init=keyframes \
    --config.train.keyframes.dataset="$BUCKET/clips" \
    --config.train.keyframes.data_dir="$BUCKET/prepared" \
    --config.train.keyframes.text=step \
    "$@"
