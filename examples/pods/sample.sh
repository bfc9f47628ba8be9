#!/usr/bin/env bash
# What each process of batch sampling runs. Flags of show1-sample may follow, and override these.
#
#     BUCKET=gs://my-bucket bash examples/pods/sample.sh --shard 3/64
set -euo pipefail
: "${BUCKET:?Set it to where prompts, checkpoints and videos are, such as gs://my-bucket}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$BUCKET/compiled}"

exec show1-sample --config configs/show1.py \
    --checkpoint "$BUCKET/checkpoints/show1" \
    --prompts "$BUCKET/prompts.txt" \
    --out "$BUCKET/videos" \
    "$@"
