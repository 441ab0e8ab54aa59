"""The optimizer of a run, and what varies with the update index: rates, momenta, batch sizes."""

from collections.abc import Mapping

import ml_collections
from jaxtyping import PyTree

from lbsgd.config.dotted import is_dotted
from lbsgd.models.networks import Outline
from lbsgd.models.selection import multipliers_by, trained_part
from lbsgd.optim.chain import build_optimizer, with_multipliers
from lbsgd.optim.damping import build_damping
from lbsgd.optim.rule import Rule
from lbsgd.optim.stock import check_update
from lbsgd.schedule import batch_growth, functions
from lbsgd.schedule.functions import Schedule
from lbsgd.schedule.learning_rate import LearningRate, sgd_noise_scale
from lbsgd.schedule.timeline import Timeline
from lbsgd.step.numbers import Numbers
from lbsgd.tasks.task import Task


def rule_of_run(
    config: ml_collections.ConfigDict,
    found: Outline,
    trained: PyTree[bool],
    rate: LearningRate,
    timeline: Timeline,
    momenta: Mapping[int, float],
) -> Rule:
    """Builds the optimizer of a run, of the parameters that it trains.

    Args:
      trained: like the parameters, True where they are trained.
      momenta: by batch size.

    Raises:
      ConfigError: it cannot be had, or another's does not update these parameters.
    """
    momentum = batch_growth.momentum_schedule(timeline, momenta)
    damping = build_damping(config, timeline)
    keys = {**config.optimizer, "momentum": momentum, "damping": damping}
    by_pattern = dict(config.optimizer.rate_multipliers.items())
    multipliers = multipliers_by(by_pattern, found.roles, trained)
    rule = build_optimizer(rate.schedule, trained_part(found.roles, trained), **keys)
    rule = with_multipliers(rule, trained_part(multipliers, trained))
    if is_dotted(config.optimizer.name):
        check_update(rule, trained_part(found.params, trained))
    return rule


def schedules_of(
    config: ml_collections.ConfigDict,
    rate: LearningRate,
    timeline: Timeline,
    momenta: Mapping[int, float],
) -> dict[str, Schedule]:
    """Collects what varies with the update index and is among the metrics, by name there.

    Args:
      momenta: by batch size.
    """
    sizes = {size: float(size) for size in momenta}
    found = {"learning_rate": rate.schedule, "batch_size": batch_growth.by_size(timeline, sizes)}
    momentum = batch_growth.momentum_schedule(timeline, momenta)
    if callable(momentum):
        found["momentum"] = momentum
    damping = build_damping(config, timeline)
    if callable(damping):
        found["damping"] = damping
    if config.optimizer.name in ("sgd", "lars"):  # others have no momentum in this sense
        found["sgd_noise_scale"] = sgd_noise_scale(rate.schedule, momenta, timeline)
    return found


def numbers_of(config: ml_collections.ConfigDict, rule: Rule, task: Task) -> Numbers:
    """Collects what each update takes: numbers, and schedules of some of them."""
    decay = config.ema.decay
    return Numbers(
        seed=config.seed,
        optimizer=dict(rule.numbers),
        task=dict(task.numbers),
        batch_norm_momentum=config.batch_norm.momentum,
        ema_decay=functions.warmed_decay(decay) if decay and config.ema.warmup else decay,
    )
