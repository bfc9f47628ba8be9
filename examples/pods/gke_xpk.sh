#!/usr/bin/env bash
# A slice of 64 TPU chips on GKE, by XPK (https://github.com/AI-Hypercomputer/xpk), on a cluster
# that `xpk cluster create` made. In a clone:
#
#     docker build -f examples/pods/Dockerfile --build-arg EXTRA=tpu -t "$IMAGE" .
#     docker push "$IMAGE"
#     BUCKET=gs://my-bucket bash examples/pods/gke_xpk.sh train       # or sample
set -euo pipefail
: "${BUCKET:?Set it to where clips, checkpoints and runs are, such as gs://my-bucket}"
: "${CLUSTER:?Set it to the name of the cluster}" "${PROJECT:?}" "${ZONE:?}"
: "${IMAGE:?Set it to an image of examples/pods/Dockerfile}"
case "${1:-}" in train | sample) ;; *) echo "give train or sample" >&2 && exit 2 ;; esac

# XPK starts the pods again, 50 times at most, if they end with 143 (or 42, or 127 and above), which
# is what SIGTERM makes of them. With exec, XPK's SIGTERM reaches the script.
exec xpk workload create \
    --workload "show1-$1" \
    --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" \
    --tpu-type v5litepod-64 --num-slices 1 \
    --docker-image "$IMAGE" \
    --env "BUCKET=$BUCKET" \
    --max-restarts 50 \
    --termination-grace-period-seconds 600 \
    --command "exec bash examples/pods/$1.sh --coordinator=auto"
