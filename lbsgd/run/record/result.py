"""Reports what came of a run, its final metric and its target: in lines, a file and a picture."""

import dataclasses
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lbsgd.run.plan import Plan
from lbsgd.run.record import curves
from lbsgd.run.record.metrics import best_first, evaluations, read_whole_lines
from lbsgd.run.record.progress import Progress
from lbsgd.run.record.speed import Speed
from lbsgd.run.target import OF_AVERAGE, Target
from lbsgd.run.workdir import Workdir
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.files import replace_file
from lbsgd.system.text import pluralize
from lbsgd.tasks.task import Task
from lbsgd.workers.placement import Placement

# Of the final error (Goyal et al., section 5.1).
FINAL_EPOCHS = 5
# Updates at which the schedule is drawn, besides those where it jumps; no picture shows more.
DRAWN = 4000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Tells how a run ended.

    Attributes:
      updates: done in all.
      complete: whether there is nothing left to do; a run that was stopped has something left.
      final: see `Final`; None if there was no evaluation.
    """

    updates: int
    complete: bool
    final: float | None


class Final(NamedTuple):
    """Holds the median of the headline metric over the final 5 epochs.

    For classification that is the validation error of Goyal et al., section 5.1, in percent.

    Attributes:
      value: of the task's headline metric.
      evaluations: of which it is the median.
      whole: whether there were 5 epochs; a shorter run has the median over all of it.
    """

    value: float
    evaluations: int
    whole: bool


def final_value(metrics: list[dict[str, Any]], timeline: Timeline, headline: str) -> Final | None:
    """Takes the median over the evaluations in the epoch of the last one, and in the 4 before it.

    An evaluation at the end of an epoch belongs to that epoch (`Timeline.epoch_of`): with one at
    the end of each these are the final five, with one every fourth epoch the final two.

    Args:
      headline: a metric of evaluations, by its name in the metrics.

    Returns:
      None if there was no evaluation.
    """
    lines = [line for line in evaluations(metrics) if line.get(headline) is not None]
    evaluated = [(line["step"], line[headline]) for line in lines]
    if not evaluated:
        return None
    last = timeline.epoch_of(evaluated[-1][0])
    values = [value for step, value in evaluated if timeline.epoch_of(step) > last - FINAL_EPOCHS]
    return Final(statistics.median(values), len(values), last >= FINAL_EPOCHS)


def finish(
    plan: Plan,
    folder: Workdir,
    progress: Progress,
    done: int,
    complete: bool,
    speed: Speed | None,
    corrupt: Collection[str],
) -> Outcome:
    """Sums the run up, and draws its curves.

    Args:
      done: updates.
      complete: whether nothing is left to do.
      speed: None if nothing was trained.
      corrupt: the names of examples that could not be read.
    """
    if jax.process_index():
        progress.line(f"{'done' if complete else 'stopped'} after update {done}")
        return Outcome(done, complete, None)
    lines, damage = read_whole_lines(folder.metrics)
    final = final_value(lines, plan.timeline, _headline(plan))
    undrawn = ""
    if done:
        schedule = _schedule(plan, done)
        undrawn = curves.draw(lines, folder.curves, _title(plan), schedule, plan.task)
    unwritten = _write(plan, folder, done, complete, lines)
    for problem in filter(None, (damage, undrawn, unwritten)):
        progress.line(problem)
    progress.line("")
    if not complete:
        left = "resumes it" if done < plan.total_updates else "evaluates it"
        progress.line(
            f"stopped after update {done} of {plan.total_updates}; the same command {left}"
        )
    if final:
        progress.line(say_final(final, list(evaluations(lines)), plan.task))
    averaged = final_value(lines, plan.timeline, _headline(plan) + OF_AVERAGE)
    if averaged:
        progress.line(f"averaged weights: {say_value(averaged, plan.task)}")
    if plan.target:
        progress.line(say_target(plan.target, lines))
    if speed:
        epochs = pluralize(plan.timeline.epoch(done), "epoch")
        progress.line(f"{pluralize(done, 'update')}, {epochs}, {speed}")
    if corrupt:
        progress.line(f"corrupt examples: {len(corrupt)}, named in {folder.corrupt}")
    for name, path in (
        ("checkpoint", folder.checkpoints / str(done)),
        ("metrics", folder.metrics),
        ("picture", folder.curves),
    ):
        if name != "picture" or (done and not undrawn):
            progress.line(f"{name:<11}{path}")
    return Outcome(done, complete, final.value if final else None)


def _headline(plan: Plan) -> str:
    return f"val_{plan.task.headline}"


def say_final(final: Final, evaluated: Sequence[Mapping[str, Any]], task: Task) -> str:
    """Says the final value, of how many evaluations it is, and what the last of all found."""
    best, last = task.best, evaluated[-1]
    # The loss says little at the end.
    others = {n: m for n, m in task.validation.items() if n not in ("loss", task.headline)}
    rest = [
        f"{metric.words or name} {metric.format(last[f'val_{name}'])}"
        for name, metric in others.items()
        if last.get(f"val_{name}") is not None
    ]
    of = f"the only evaluation in the final {FINAL_EPOCHS} epochs"
    if len(evaluated) == 1:
        of = "the only evaluation"
    elif final.evaluations > 1:
        of = f"median of the {final.evaluations} evaluations in the final {FINAL_EPOCHS} epochs"
        if not final.whole:
            of = (
                f"median of all {final.evaluations} evaluations, in fewer than {FINAL_EPOCHS} "
                "epochs"
            )
        at_last = last.get(f"val_{task.headline}")
        rest = [f"the last {'not finite' if at_last is None else best.format(at_last)}", *rest]
    said = "; ".join(filter(None, (of, ", ".join(rest))))
    return f"{say_value(final, task)} ({said})"


def say_value(final: Final, task: Task) -> str:
    """Says the final value: "validation error 24.10%"."""
    best = task.best
    return f"validation {best.words or task.headline} {best.format(final.value)}"


def say_target(target: Target, lines: Sequence[Mapping[str, Any]]) -> str:
    """Says after how many updates and epochs the target was reached, or how near it came."""
    line = target.first(lines)
    if line is None:
        best = target.best(lines)
        came = f"the best was {best:.6g}" if best is not None else "there was no evaluation"
        return f"target not reached: {target} ({came})"
    updates = pluralize(line["step"], "update")
    epochs = pluralize(line["epoch"], "epoch")
    return f"target reached: {target}, after {updates} = {epochs} ({target.own_of(line):.6g})"


def write_diverged(plan: Plan, folder: Workdir, reason: str) -> str:
    """Writes what came of a run that diverged: "", or why that cannot be.

    Args:
      reason: a line.
    """
    if jax.process_index():
        return ""
    lines, _ = read_whole_lines(folder.metrics)
    done = lines[-1]["step"] if lines else 0
    return _write(plan, folder, done, False, lines, diverged=reason)


def _write(
    plan: Plan,
    folder: Workdir,
    done: int,
    complete: bool,
    lines: list[dict[str, Any]],
    **more: Any,
) -> str:
    """Writes result.json: "", or why that cannot be."""
    final, target = final_value(lines, plan.timeline, _headline(plan)), plan.target
    averaged = final_value(lines, plan.timeline, _headline(plan) + OF_AVERAGE)
    found = {
        "updates": done,
        "epochs": plan.timeline.epoch(done),
        "complete": complete,
        "headline": _headline(plan),
        "final": final.value if final else None,
        "final_evaluations": final.evaluations if final else 0,
        **_last_and_best(plan, lines),
        **({f"final{OF_AVERAGE}": averaged.value} if averaged else {}),
        "target": _target_reached(target, lines) if target else None,
        "metrics": _finals(plan, lines),
        **more,
    }
    try:
        replace_file(folder.result, json.dumps(found, indent=2) + "\n")
    except OSError as error:
        return f"{folder.result} cannot be written ({error.strerror or error})"
    return ""


def _last_and_best(plan: Plan, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Takes what the last evaluation and the best one found, of equals the later; null if none."""
    values = best_first(lines, _headline(plan), plan.task.best.rises)
    best = next(iter(values), None)
    return {
        "last": values[max(values)] if values else None,
        "best": None if best is None else values[best],
        "best_updates": best,
    }


def _finals(plan: Plan, lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Takes the final value of each metric of evaluations, with what tells how to read it."""
    found = {}
    for ending in ("", OF_AVERAGE):
        for name, metric in plan.task.validation.items():
            final = final_value(lines, plan.timeline, f"val_{name}{ending}")
            if final:
                found[f"val_{name}{ending}"] = {
                    "final": final.value,
                    "unit": metric.unit,
                    "rises": metric.rises,
                    "words": metric.words or name,
                }
    return found


def _target_reached(target: Target, lines: list[dict[str, Any]]) -> dict[str, Any]:
    line = target.first(lines)
    return {
        "metric": target.metric,
        "value": target.value,
        "reached": line is not None,
        "updates": line["step"] if line else None,
        "epochs": line["epoch"] if line else None,
    }


def _title(plan: Plan) -> str:
    sizes = " to ".join(
        f"{placement.batch_size} = {pluralize(placement.workers, 'worker')}"
        for placement in _first_and_last(plan)
    )
    return f"{plan.config.model.name} on {plan.config.data.source}, minibatch {sizes}"


def _first_and_last(plan: Plan) -> list[Placement]:
    """Returns the placements of the first and the last update, once if they are one."""
    last = plan.placements[plan.timeline.batch_size(plan.total_updates - 1)]
    return [plan.placement] if last == plan.placement else [plan.placement, last]


def _schedule(plan: Plan, done: int) -> curves.Schedule:
    """Samples the schedules over the updates that are done."""
    rate, timeline = plan.learning_rate, plan.timeline
    jumps = [rate.warmup_updates, *rate.decay_updates, *(s.first_update for s in timeline.segments)]
    evenly = range(0, done, max(1, done // DRAWN))
    updates = sorted({*evenly, *(t for t in jumps if t < done)})
    rates = jax.vmap(plan.schedules["learning_rate"])(jnp.asarray(updates, jnp.int32))
    return curves.Schedule(
        [timeline.epoch(t) for t in [*updates, done]],
        np.asarray(rates).tolist(),
        [timeline.batch_size(t) for t in updates],
    )
