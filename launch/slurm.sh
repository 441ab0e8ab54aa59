#!/usr/bin/env bash
# Trains on a SLURM cluster, one task a GPU, and comes back until it is done:
#
#   sbatch launch/slurm.sh --config configs/imagenet_goyal.py --workdir /shared/runs/goyal
#
# Edit the lines below, or give sbatch the same options. README.md tells the rest.
#
# --gres and not --gpus-per-task: JAX takes the GPU of its rank on the node, so a task must see all.
# --signal without "B:": the tasks get it, that many seconds before the time is up.

#SBATCH --job-name=lbsgd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -uo pipefail

# Failures are tried again up to so many starts; a preemption also counts as one, but always is.
max_restarts=${LBSGD_MAX_RESTARTS:-10}

if [[ -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    . .venv/bin/activate
fi

say() { echo "slurm.sh: job $SLURM_JOB_ID: $*"; }

# A job that is being cancelled or requeued is in SLURM's hands, and must not be brought back here.
requeue() {
    local state
    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) || state=RUNNING
    if [[ $state == RUNNING ]]; then
        say "$1, requeued"
        scontrol requeue "$SLURM_JOB_ID" || exit 1
        exit 0
    fi
    say "$1; SLURM has it as $state"
}

# SLURM tells this shell too; the tasks save a checkpoint meanwhile, and their code counts.
trap : TERM

restarts=${SLURM_RESTART_COUNT:-0}
say "start $((restarts + 1)) on $SLURM_JOB_NODELIST"

# Not --kill-on-bad-exit: the first task that ends with 75 would have the others killed while they
# save. --wait ends the rest a minute after the first, whatever it ended with.
srun --kill-on-bad-exit=0 --wait=60 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    python -m lbsgd.main "$@"
code=$?

case $code in
    0) say "done" ;;
    2 | 3) say "exit code $code, which another start would not mend" ;;
    75) requeue "stopped after a checkpoint" ;;
    *)
        if ((restarts < max_restarts)); then
            requeue "exit code $code"
        else
            say "exit code $code after $restarts restarts, given up"
        fi
        ;;
esac
exit "$code"
