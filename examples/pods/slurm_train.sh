#!/usr/bin/env bash
# Training on four nodes of eight GPUs, as one job. In a clone that all nodes see:
#
#     python3 -m venv .venv && .venv/bin/pip install -e ".[cuda,cloud]"
#     BUCKET=s3://my-bucket sbatch examples/pods/slurm_train.sh
#
# One task a GPU: JAX gives each task of a node the GPU of its number. All GPUs of a node must
# be visible to all of its tasks, so --gpus-per-task is wrong here.
#SBATCH --job-name=show1-train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# SIGTERM to the tasks, not to this script, ten minutes before the time is up.
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --output=show1-train-%j.txt
#SBATCH --open-mode=append
set -uo pipefail
. .venv/bin/activate

# The first task may still be saving when others have ended.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash examples/pods/train.sh --coordinator=auto
status=$?
# 143: SIGTERM came, and all is saved. The same job goes on when its turn comes again.
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
