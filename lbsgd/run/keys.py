"""Keys of a run as a whole: its seed and end, evaluations, checkpoints, log, and processes."""

from lbsgd.config.keys import ON, Key, Keys, any_time, times
from lbsgd.run import sink_names, target

_RUN: Keys = {
    # JAX looks at 32 bits of it.
    "seed": Key(0, "The seed of initialisation, order and augmentation.", most=2**32 - 1),
    "code_may_differ": Key(
        False,
        "Whether a run resumes although a file that its config names as package.module:name is no "
        "longer what it was.",
        machine=True,
    ),
    "updates_per_call": Key(
        1,
        "How many updates are made in one call of a compiled program, where nothing is evaluated, "
        "saved or measured between them: more make small networks faster.",
        unit="updates",
        positive=True,
        most=10**4,
        machine=True,
    ),
    "stop_at": Key(
        (),
        "The first evaluation that reaches this ends the run: () for none, or a metric of the task "
        "and a number, like ('val_error', 24.1) or ('val_accuracy_top5', 93.0).",
        check=lambda _, value: target.check(value),
        own_check=True,
        machine=True,
    ),
}

_EVALUATION: Keys = {
    **times("evaluation.every", "How often the run is evaluated, besides at its end."),
    **times(
        "evaluation.offset",
        "When the first evaluation is, where that is not after one interval.",
        used_if=any_time("evaluation.every"),
    ),
    "evaluation.batch_size": Key(
        0,
        "How many examples are evaluated at once; 0 for as many as an accumulation step trains.",
        unit="examples",
        most=10**9,
        machine=True,
    ),
}

_CHECKPOINT: Keys = {
    **times(
        "checkpoint.every", "How often a checkpoint is saved, besides at the end.", machine=True
    ),
    "checkpoint.every_minutes": Key(
        10.0,
        "How often a checkpoint is saved by the clock besides; 0 for never.",
        unit="minutes",
        machine=True,
    ),
    "checkpoint.keep": Key(
        3,
        "How many checkpoints are kept; the newest that verifies is never removed.",
        positive=True,
        machine=True,
    ),
    "checkpoint.keep_best": Key(
        False,
        "Whether the checkpoint of the best evaluation is kept too, by the metric that the run is "
        "judged by. To choose by validation examples is to be optimistic about them.",
        machine=True,
    ),
    "checkpoint.on_error": Key(
        "continue",
        "What happens when a checkpoint cannot be written: training continues, or it stops.",
        choices=("continue", "stop"),
        machine=True,
    ),
}

_LOG: Keys = {
    "log.every_steps": Key(
        100, "How often metrics are written.", unit="updates", positive=True, machine=True
    ),
    "log.sinks": Key(
        ("tensorboard",),
        "Where metrics go besides metrics.jsonl: () for nowhere else.",
        choices=tuple(sink_names.OWN),
        dotted=True,
        machine=True,
    ),
    "log.sink_options": Key(
        {},
        "Options of the sinks, by their names: log.sink_options.wandb.project=x; those of "
        '"package.module:Sink" by Sink.',
        machine=True,
    ),
}

_RUNTIME: Keys = {
    "runtime.heartbeat_seconds": Key(
        60,
        "How long one of several processes may be silent before all are ended.",
        unit="seconds",
        positive=True,
        most=10**6,
        machine=True,
    ),
    "runtime.start_seconds": Key(
        300,
        "How long the processes wait for each other at the start.",
        unit="seconds",
        positive=True,
        most=10**6,
        machine=True,
    ),
    "runtime.stall_minutes": Key(
        10.0,
        "The time without an update after which the stacks of all threads are written to the log "
        "of the process; 0 for never.",
        unit="minutes",
        most=10**6,
        machine=True,
    ),
    "runtime.on_stall": Key(
        "report",
        "Whether a stall is only reported, or also ends the process (exit code 1).",
        choices=("report", "end"),
        machine=True,
        used_with={"runtime.stall_minutes": ON},
    ),
}

KEYS: Keys = {**_RUN, **_EVALUATION, **_CHECKPOINT, **_LOG, **_RUNTIME}
