#!/usr/bin/env bash
# Sampling by an array of 64 jobs of one GPU, which do not know of each other. In a clone that
# all nodes see:
#
#     python3 -m venv .venv && .venv/bin/pip install -e ".[cuda,cloud]"
#     BUCKET=s3://my-bucket sbatch examples/pods/slurm_sample.sh
#     BUCKET=s3://my-bucket sbatch --array=3,17 examples/pods/slurm_sample.sh    # two of them again
#     show1-sample --out s3://my-bucket/videos --merge                           # when all have ended
#SBATCH --job-name=show1-sample
#SBATCH --array=0-63
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=show1-sample-%A-%a.txt
#SBATCH --open-mode=append
set -euo pipefail
. .venv/bin/activate

# Not SLURM_ARRAY_TASK_COUNT, which is 2 when two are run again.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash examples/pods/sample.sh --shard "$SLURM_ARRAY_TASK_ID/64"
