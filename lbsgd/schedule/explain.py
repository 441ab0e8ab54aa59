"""Explains a run's learning rate."""

import ml_collections

from lbsgd.schedule.batch_growth import phases_of
from lbsgd.schedule.learning_rate import LearningRate
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.text import enumerate_numbers, noun, pluralize


def explain_learning_rate(
    config: ml_collections.ConfigDict, rate: LearningRate, timeline: Timeline, total: int
) -> str:
    """Says how the learning rate follows from its reference, and how it varies.

    Args:
      config: of the run.
      total: updates of the whole training.
    """
    c = config.learning_rate
    ratio = f"{config.batch_size:,}/{c.reference_batch_size:,}"
    factor = {"linear": f" x {ratio}", "sqrt": f" x sqrt({ratio})", "none": ""}[c.scaling]
    text = f"learning rate: {rate.full:.6g}"
    text += f" = {c.reference_learning_rate:.6g}{factor}" if factor else ""
    if rate.warmup_updates:
        power = f", power {c.warmup_power:g}" if c.warmup_power != 1 else ""
        text += (
            f"; {c.warmup} warmup {pluralize(rate.warmup_updates, 'update')} from "
            f"{rate.warmup_rate:.6g}{power}"
        )
    else:
        text += "; no warmup"
    if config.batch_growth.in_place_of_decay and not rate.decay_updates:
        return f"{text}; no decay, the batch grows instead"
    if config.batch_growth.in_place_of_decay:
        levels = {
            timeline.update_at_epoch(phase.epoch): rate.full * float(phase.rate)
            for phase in phases_of(config)
        }
        changes = ", ".join(f"{levels[t]:.6g} from update {t:,}" for t in rate.decay_updates)
        return f"{text}; where the batch does not grow, it decays: {changes}"
    if rate.decay_updates:
        reached = [t for t in rate.decay_updates if t < total]
        past = len(rate.decay_updates) - len(reached)
        if reached:
            updates = f"{noun(len(reached), 'update')} {enumerate_numbers(reached)}"
            text += f"; x{c.decay_factor:g} at {updates}"
        lie = "lies" if past == 1 else "lie"
        return text + (f"; {past} of its decays {lie} past the end" if past else "")
    text += f"; decay: {c.decay}"
    begin, end = rate.decay_span
    if begin > rate.warmup_updates:
        text += f" from update {begin:,}"
    if c.decay == "polynomial":
        text += f", power {c.decay_power:g}, to {c.decay_end_rate:g} at update {end:,}"
    elif end not in (0, total):
        text += f" to 0 at update {end:,}"
    if c.decay != "none" and begin < rate.warmup_updates:
        dropped = float(rate.schedule(rate.warmup_updates))
        text += f", counted from update 0: {dropped:.6g} after warmup"
    return text
