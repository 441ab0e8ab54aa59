#!/usr/bin/env bash
# Trains on a SLURM cluster, one task a GPU, and comes back until it is done:
#
#   sbatch launch/slurm.sh --config configs/imagenet_goyal.py --workdir /shared/runs/goyal
#
# Edit the lines below, or give sbatch the same options. README.md tells the rest.
#
# --gres and not --gpus-per-task: JAX takes the GPU of its rank on the node, so a task must see all.
# --mem=0: all of a node's memory, as of its GPUs; the default of a cluster may be far less.
# --signal without "B:": the tasks get it, that many seconds before the time is up.

#SBATCH --job-name=lbsgd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -uo pipefail

# So many failures in a row are tried again. SLURM's own count of restarts has preemptions in it.
max_restarts=${LBSGD_MAX_RESTARTS:-10}
failures_file=slurm-$SLURM_JOB_ID.failures

if [[ -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    . .venv/bin/activate
fi

say() { echo "slurm.sh: job $SLURM_JOB_ID: $*"; }

# A job that is being cancelled or requeued is in SLURM's hands, and must not be brought back here.
requeue() { # why, and how many failures in a row that makes
    local state
    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) || state=RUNNING
    if [[ $state == RUNNING ]]; then
        say "$1, requeued"
        echo "$2" >"$failures_file" || exit 1 # else it would come back for ever
        scontrol requeue "$SLURM_JOB_ID" || exit 1
        exit 0
    fi
    say "$1; SLURM has it as $state"
}

# SLURM tells this shell too; the tasks save a checkpoint meanwhile, and their code counts.
trap : TERM

say "start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST"

# Not --kill-on-bad-exit: the first task that ends with 75 would have the others killed while they
# save. --wait ends the rest a minute after the first, whatever it ended with.
srun --kill-on-bad-exit=0 --wait=60 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    python -m lbsgd.main train "$@"
code=$?

case $code in
    0) say "done" ;;
    # 126 and 127: there is no python to start.
    2 | 3 | 126 | 127) say "exit code $code, which another start would not mend" ;;
    75) requeue "stopped after a checkpoint" 0 ;;
    *)
        failures=0
        if [[ -f $failures_file ]]; then
            failures=$(<"$failures_file")
        fi
        if ((failures < max_restarts)); then
            requeue "exit code $code" $((failures + 1))
        else
            say "exit code $code after $failures failures before, given up"
        fi
        ;;
esac
rm -f "$failures_file"
exit "$code"
