#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice, from any machine that has gcloud, tar and git:
#
#   launch/tpu_pod.sh create                   # or queue: a queued resource, which waits its turn
#   launch/tpu_pod.sh install                  # this commit, on every worker
#   launch/tpu_pod.sh start --config configs/imagenet_goyal.py --workdir /mnt/runs/goyal
#   launch/tpu_pod.sh watch | status | stop | delete
#
# Edit the lines below, or set the variables. DRY_RUN=yes prints the commands that would be
# run, and runs none. README.md tells the rest.

set -euo pipefail

NAME=${NAME:-lbsgd}
ZONE=${ZONE:-us-west4-a}
PROJECT=${PROJECT:-$(gcloud config get-value project 2>/dev/null || true)}
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-no}
# Data and workdir, where they are not on the workers' own disks: a command that each runs first.
MOUNT=${MOUNT:-true}
DRY_RUN=${DRY_RUN:-no}

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

where=(--zone="$ZONE" --project="$PROJECT")
spot=()
if [[ $SPOT == yes ]]; then
    spot=(--spot)
fi

# What reaches the workers is one line for their shells, so every word of the user's is quoted once.
quoted() {
    (($#)) || return 0
    printf ' %q' "$@"
}

printed() {
    local word line=
    for word in "$@"; do
        # Not as `quoted` has it: in single quotes the workers' lines stay lines, to be read.
        if [[ $word == *[!A-Za-z0-9_=./:-]* ]]; then word="'${word//\'/\'\\\'\'}'"; fi
        line+="$word "
    done
    echo "${line% }"
}

if [[ $DRY_RUN == yes ]]; then
    git() { printed git "$@"; }
    gcloud() {
        printed gcloud "$@"
        # Nothing is queued: so the commands are those of a slice that was created at once.
        [[ $* != *queued-resources\ describe* ]]
    }
fi

on() { # all, or the number of a worker; then one line for its shell
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"
}

create() {
    gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
        --accelerator-type="$ACCELERATOR" --version="$RUNTIME" "${spot[@]}"
}

queue() {
    gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
        --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${spot[@]}"
}

is_queued() {
    gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
        --format="value(state.state)" 2>/dev/null
}

install() {
    local archive
    archive=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf $(printf %q "$archive")" EXIT
    git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive/lbsgd.tar.gz" HEAD
    gcloud compute tpus tpu-vm scp "$archive/lbsgd.tar.gz" "$NAME:" "${where[@]}" --worker=all
    on all "$(
        cat <<'EOF'
set -e
mkdir -p lbsgd
tar -xzf lbsgd.tar.gz -C lbsgd
cd lbsgd
python3.11 -m venv .venv || {
    sudo apt-get -q update
    sudo apt-get -q install -y python3.11 python3.11-venv
    python3.11 -m venv .venv
}
.venv/bin/pip install --quiet -e '.[tpu,gs]'
EOF
    )"
}

# The run outlives the ssh session. Its process number and its exit code are left in files. A lock
# tells whether it runs: after a reboot the number may be that of another process.
runs='! flock --nonblock lock true'

start() {
    (($#)) || usage
    on all "set -e
cd lbsgd
if $runs; then echo 'runs already' >&2; exit 1; fi
$MOUNT
rm -f pid exit_code
nohup flock lock bash -c '.venv/bin/python -m lbsgd.main train \"\$@\" & echo \$! >pid; wait \$!; echo \$? >exit_code' \
lbsgd$(quoted "$@") >>run.log 2>&1 </dev/null &
until [ -s pid ]; do sleep 0.1; done"
}

watch() { on 0 "tail -n 50 -F lbsgd/run.log"; }

status() {
    local queued
    if queued=$(is_queued); then
        echo "queued resource: $queued"
        [[ $queued == ACTIVE ]] || return 0
    fi
    on all "cd lbsgd
if [ -s exit_code ]; then echo \"\$(hostname): exit code \$(cat exit_code)\"
elif $runs; then echo \"\$(hostname): runs\"
else echo \"\$(hostname): not started, or ended without an exit code\"; fi"
}

# One SIGTERM would do: the workers agree on the update after which they save and end with 75.
stop() {
    on all "cd lbsgd
if $runs; then kill -TERM \$(cat pid) 2>/dev/null; fi
flock lock true"
    status
}

delete() {
    if is_queued >/dev/null; then
        # --force takes the slice along.
        gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
    else
        gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet
    fi
}

(($#)) || usage
command=$1
shift
case $command in
    create | queue | install | watch | status | stop | delete)
        (($# == 0)) || usage
        "$command"
        ;;
    start) start "$@" ;;
    *) usage ;;
esac
