#!/usr/bin/env bash
# One host with eight GPUs: training, then sampling from what was trained. In a clone:
#
#     python3 -m venv .venv && .venv/bin/pip install -e ".[cuda,cloud]"
#     BUCKET=s3://my-bucket bash examples/pods/one_host.sh
#
# One process sees all GPUs. After a reboot the same command goes on where it was.
set -euo pipefail
. .venv/bin/activate

# Parameters and clips are split over the eight GPUs.
bash examples/pods/train.sh
# Each GPU makes a prompt. The checkpoint that is named last overrides the stage that it has.
exec bash examples/pods/sample.sh --checkpoint "$BUCKET/runs/show1/checkpoint"
