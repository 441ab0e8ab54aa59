"""Explains how each number of a run follows from its config, for people to read."""

import dataclasses
import math
import operator

import jax
from clu import parameter_overview

from lbsgd.data.explain import (
    explain_augmentation,
    explain_data,
    explain_image_sizes,
    explain_shuffle,
)
from lbsgd.models.curvature import curvature_of
from lbsgd.models.explain import explain_network, explain_normalization, explain_precision
from lbsgd.models.selection import multipliers_by, trained_part
from lbsgd.optim.explain import (
    decaying,
    explain_frozen,
    explain_optimizer,
    explain_sharing,
    with_trust_ratio,
)
from lbsgd.run.calls import explain_calls
from lbsgd.run.plan import Plan
from lbsgd.run.sink_names import explain_sinks
from lbsgd.schedule.batch_growth import momentum_of_size
from lbsgd.schedule.explain import explain_learning_rate
from lbsgd.system.text import decimal, pluralize
from lbsgd.tasks.explain import explain_task
from lbsgd.workers.explain import explain_allreduce, explain_compiler


@dataclasses.dataclass(frozen=True)
class _ParameterRow:
    """A row of the table of parameters."""

    Name: str
    Role: str
    Shape: str
    Size: int
    Decayed: str
    Trust: str
    Rate: str


@dataclasses.dataclass(frozen=True)
class _CurvedRow(_ParameterRow):
    """A row of the table of a second-order optimizer."""

    Curvature: str


def parameter_table(plan: Plan) -> str:
    """Tables each parameter: its role, whether it decays and has a trust ratio, and its rate.

    Of one that is frozen there is none of these; the rate is in multiples of the run's. For a
    second-order optimizer also what it knows of the parameter's curvature.
    """
    c, params, roles = plan.config.optimizer, plan.state_shapes.params, plan.outline.roles
    of_each = (decaying(c, roles), with_trust_ratio(c, roles))
    decays, ratios = (jax.tree.map(operator.and_, x, plan.trained) for x in of_each)
    rates = multipliers_by(dict(c.rate_multipliers.items()), roles, plan.trained)
    rows = [
        _ParameterRow(
            jax.tree_util.keystr(path, simple=True, separator="/"),
            str(role),
            str(shape.shape),
            shape.size,
            "yes" if decay else "no",
            "yes" if ratio else "no",
            f"{rate:g}" if is_trained else "frozen",
        )
        for (path, shape), role, decay, ratio, rate, is_trained in zip(
            jax.tree_util.tree_leaves_with_path(params),
            jax.tree.leaves(roles),
            jax.tree.leaves(decays),
            jax.tree.leaves(ratios),
            jax.tree.leaves(rates),
            jax.tree.leaves(plan.trained),
        )
    ]
    if plan.second_order:
        known = curvature_of(plan.second_order.fisher.layers)
        rows = [
            _CurvedRow(
                **dataclasses.asdict(row),
                Curvature="" if row.Rate == "frozen" else known.get(row.Name, "diagonal"),
            )
            for row in rows
        ]
    table: str = parameter_overview.make_table(rows)
    return table


def explain(plan: Plan) -> list[str]:
    """Explains a run, what it is first: a line for each number that follows from its config.

    Numbers from 1,000 on have separators, but for shapes and for values to be set as keys.
    """
    c = plan.config
    rate, total = plan.learning_rate, plan.total_updates
    lines = [
        *explain_network(c, plan.network.named, plan.outline),
        *_explain_outputs(plan),
        *(plan.weights.describe() if plan.weights else []),
        *explain_precision(c),
        explain_task(c, plan.task),
        explain_normalization(c, plan.outline, plan.precise_batches * c.batch_size),
        *explain_data(c.data, plan.data, plan.image_shape),
        *explain_shuffle(c.data, plan.data.examples, plan.placement.workers),
        explain_augmentation(c.data),
        *explain_image_sizes(plan.augmentation, plan.image_sizes, plan.timeline, total),
        *_explain_machine(plan),
        *_explain_batch_sizes(plan),
    ]
    if plan.gradient_mean is not None:
        lines.append(explain_allreduce(c.allreduce, plan.topology))
    return [
        *lines,
        *explain_compiler(c.allreduce, plan.topology),
        _explain_length(plan),
        *explain_calls(plan),
        explain_learning_rate(c, rate, plan.timeline, total),
        explain_optimizer(c.optimizer, trained_part(plan.outline.roles, plan.trained)),
        *_explain_sharing(plan),
        *explain_frozen(c.optimizer, plan.outline.params, plan.trained),
        *_explain_accumulation(plan),
        *plan.measurements.describe(c.diagnostics),
        *_explain_average(plan),
        *(f"code: {named.describe()}" for named in plan.code),
        *explain_sinks(c),
        *plan.unused,
    ]


def _explain_sharing(plan: Plan) -> list[str]:
    if plan.second_order is None:
        return []
    trained = jax.tree.leaves(trained_part(plan.state_shapes.params, plan.trained))
    numbers, itemsize = sum(math.prod(x.shape) for x in trained), trained[0].dtype.itemsize
    lines = explain_sharing(plan.second_order.precondition.sharing, numbers, itemsize)
    if plan.is_spread:
        lines.append(
            "checkpoints: by updates, epochs or examples, and not by the clock, for processes have "
            "to bring their parts of the statistics"
        )
    return lines


def _explain_average(plan: Plan) -> list[str]:
    c = plan.config.ema
    if not c.decay:
        return []
    warmup = ", and at most (1 + t) / (10 + t) at update t" if c.warmup else ""
    return [f"averaged weights: decay {c.decay:g}{warmup}; evaluated beside the others"]


def _explain_machine(plan: Plan) -> list[str]:
    if plan.topology.asked:
        return []
    devices = pluralize(plan.topology.devices, "device")
    processes = pluralize(plan.topology.processes, "process", "processes")
    return [f"machine: planned for {devices} of {processes}; this machine was not asked"]


def _explain_outputs(plan: Plan) -> list[str]:
    outputs = plan.config.model.num_classes
    if outputs <= plan.data.classes:
        return []
    return [f"network: {pluralize(outputs, 'output')}, more than the data have classes"]


def _explain_accumulation(plan: Plan) -> list[str]:
    asked, steps = plan.config.accumulation_steps, plan.placement.accumulation_steps
    lines = []
    if asked and asked != steps:
        held = f"{steps:,} {'holds' if steps == 1 else 'hold'} all workers"
        lines.append(f"accumulation: {pluralize(asked, 'step')} asked for, {held}")
    if plan.estimated:
        lines.append(f"accumulation: {pluralize(steps, 'step')}, {plan.estimated}")
    return lines


def _explain_length(plan: Plan) -> str:
    epochs = plan.timeline.epoch(plan.total_updates)
    length = pluralize(epochs, "epoch")
    text = (
        f"length: {pluralize(plan.total_updates, 'update')} = {length}, "
        f"{pluralize(len(plan.evaluate_after), 'evaluation')}"
    )
    first, target = min(plan.evaluate_after), plan.target
    if first < plan.total_updates:
        text += f", the first after update {first:,} (epoch {decimal(plan.timeline.epoch(first))})"
    return text + (f"; ends at the first with {target}" if target else "")


def _explain_batch_sizes(plan: Plan) -> list[str]:
    sizes, growth = plan.timeline.segments, plan.config.batch_growth
    lines = [f"minibatch: kn={plan.placement.batch_size:,}, {plan.placement.describe()}"]
    largest, examples = max(plan.placements), plan.data.examples
    if largest > examples and not plan.config.data.synthetic_on_device:
        lines.append(
            f"minibatch: kn={largest:,} is more than the {examples:,} training examples: an update "
            "sees examples more than once"
        )
    for segment in sizes[1:]:
        update, size = segment.first_update, segment.batch_size
        if update >= plan.total_updates:
            lines.append(f"minibatch: kn={size:,} would begin past the end, at update {update:,}")
            continue
        epoch = plan.timeline.epoch(update)
        lines.append(
            f"minibatch: kn={size:,} from update {update:,} (epoch {decimal(epoch)}), "
            f"{plan.placements[size].describe()}"
        )
    if growth.in_place_of_decay:
        lines.append("minibatch: rate / batch size is at any epoch what the decay would make of it")
    elif len(sizes) > 1:
        momenta = ", ".join(f"{momentum_of_size(plan.config, b):.6g}" for b in plan.placements)
        kept = {"none": "rate and momentum do not change with the size"}
        kept["rate"] = f"{plan.config.learning_rate.scaling} scaling of the rate at each size"
        kept["momentum"] = f"momentum {momenta}, so that the noise scale stays"
        lines.append(f"minibatch: {kept[growth.compensate]}")
    return lines
