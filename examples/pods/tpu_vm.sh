#!/usr/bin/env bash
# A slice of 64 TPU chips as a queued resource of spot VMs, requested anew when it is taken away.
# In a clone, on a machine that stays and has gcloud:
#
#     BUCKET=gs://my-bucket bash examples/pods/tpu_vm.sh train        # or sample
set -euo pipefail
: "${BUCKET:?Set it to where clips, checkpoints and runs are, such as gs://my-bucket}"
case "${1:-}" in train | sample) ;; *) echo "give train or sample" >&2 && exit 2 ;; esac
NAME="${NAME:-show1-$1}"
ZONE="${ZONE:-us-west4-a}"
TYPE="${TYPE:-v5litepod-64}"
RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}"
PAUSE="${PAUSE:-60}" # seconds between two looks

state() {
    gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
        --format="value(state.state)" 2>/dev/null || echo ABSENT
}

request() {
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
}

release() {
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

on_all() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
        --ssh-flag="-oServerAliveInterval=30" --command="$1"
}

# Images of TPU VMs may have an older Python than this package needs; uv brings one.
run() {
    gcloud compute tpus tpu-vm scp "$built"/show1_jax-*.whl examples/pods/train.sh \
        examples/pods/sample.sh "$NAME": --zone="$ZONE" --worker=all &&
        on_all "python3 -m pip install --user uv && ~/.local/bin/uv venv --clear --python 3.12 .venv &&
            ~/.local/bin/uv pip install --python .venv/bin/python \"\$(ls show1_jax-*.whl)[tpu,cloud]\"" &&
        on_all ". .venv/bin/activate && BUCKET='$BUCKET' exec bash $1.sh --coordinator=auto"
}

built="$(mktemp -d)"
trap 'rm -r "$built"' EXIT
pip wheel --quiet --no-deps --wheel-dir "$built" .
while true; do
    case "$(state)" in
    ABSENT) request || echo "asking again in $PAUSE s" >&2 ;;
    ACTIVE)
        if run "$1"; then
            release
            exit
        fi
        sleep "$((5 * PAUSE))"
        # If the slice is still there, the program has failed: somebody has to look.
        [ "$(state)" != ACTIVE ] || exit 1
        ;;
    SUSPENDED | FAILED) release || echo "trying again in $PAUSE s" >&2 ;;
    esac
    sleep "$PAUSE"
done
