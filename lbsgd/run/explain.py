"""How each number of a run follows from its config, for people to read."""

import dataclasses

import jax
from clu import parameter_overview

from lbsgd.data.keys import usual_short_side
from lbsgd.optim.chain import decayed, scaled
from lbsgd.run.plan import Plan
from lbsgd.run.target import Target
from lbsgd.schedule.batch_growth import momentum_of_size, phases_of
from lbsgd.system.text import noun, pluralize
from lbsgd.workers.collectives import cost
from lbsgd.workers.collectives.allreduce import resolve_grid

# Relative: a short side of evaluation that is as far from the usual one is told.
FAR = 0.05


@dataclasses.dataclass(frozen=True)
class _ParameterRow:
    """A row of the table of parameters."""

    Name: str
    Role: str
    Shape: str
    Size: int
    Decayed: str
    Trust: str


def parameter_table(plan: Plan) -> str:
    """Each parameter with its role, and whether it decays and has a trust ratio."""
    params = plan.state_shapes().params
    layerwise = plan.config.optimizer.name != "sgd"
    rows = [
        _ParameterRow(
            jax.tree_util.keystr(path, simple=True, separator="/"),
            str(role),
            str(shape.shape),
            shape.size,
            "yes" if decay and plan.config.optimizer.weight_decay else "no",
            "yes" if ratio and layerwise else "no",
        )
        for (path, shape), role, decay, ratio in zip(
            jax.tree_util.tree_leaves_with_path(params),
            jax.tree.leaves(plan.roles),
            jax.tree.leaves(decayed(plan.roles)),
            jax.tree.leaves(scaled(plan.roles)),
        )
    ]
    table: str = parameter_overview.make_table(rows)
    return table


def explain(plan: Plan) -> list[str]:
    """How each number of the run follows from its config, a line each."""
    c = plan.config
    data = plan.data
    shape = "x".join(map(str, plan.image_shape))
    lines = [
        f"data: {c.data.source}, {data.examples:,} training and {data.validation_examples:,} "
        f"validation examples, {pluralize(data.classes, 'class', 'classes')}, {shape}",
        *(f"data: {note}" for note in data.notes),
        *plan.unused,
        _explain_augmentation(plan),
        *_explain_batch_sizes(plan),
    ]
    lines.append(_explain_network(plan))
    lines += _explain_precision(plan)
    outputs = c.model.num_classes
    if outputs > data.classes:
        lines.append(f"network: {pluralize(outputs, 'output')}, more than the data have classes")
    asked, steps = c.accumulation_steps, plan.placement.accumulation_steps
    if asked and asked != steps:
        held = f"{steps} {'holds' if steps == 1 else 'hold'} all workers"
        lines.append(f"accumulation: {pluralize(asked, 'step')} asked for, {held}")
    if plan.estimated:
        lines.append(f"accumulation: {pluralize(steps, 'step')}, {plan.estimated}")
    lines += [
        _explain_length(plan),
        _explain_rate(plan),
        _explain_optimizer(plan),
        _explain_normalization(plan),
        *plan.measurements.describe(c.diagnostics),
    ]
    if plan.gradient_mean is not None:
        lines.append(_explain_allreduce(plan))
    return lines


def _explain_network(plan: Plan) -> str:
    c, params = plan.config, plan.state_shapes().params
    size = pluralize(parameter_overview.count_parameters(params), "parameter")
    arrays = pluralize(len(jax.tree.leaves(params)), "array")
    smoothing = f", label smoothing {c.label_smoothing:g}" if c.label_smoothing else ""
    return f"network: {c.model.name}, {size} in {arrays}, computed in {c.dtype}{smoothing}"


def _explain_length(plan: Plan) -> str:
    epochs = plan.timeline.epoch(plan.total_updates)
    length = pluralize(epochs, "epoch", form=".4g")
    text = (
        f"length: {pluralize(plan.total_updates, 'update')} = {length}, "
        f"{pluralize(len(plan.evaluate_after), 'evaluation')}"
    )
    first, target = min(plan.evaluate_after), Target.of(plan.config.stop_at)
    if first < plan.total_updates:
        text += f", the first after update {first:,} (epoch {plan.timeline.epoch(first):.4g})"
    return text + (f"; ends at the first with {target}" if target else "")


def _explain_allreduce(plan: Plan) -> str:
    c, devices = plan.config.allreduce, plan.topology.devices
    text = f"all-reduce: {c.algorithm} over {pluralize(devices, 'device', form='d')}"
    text += f", buckets of {c.bucket_mib:g} MiB"
    if c.dtype != "own":
        scaled = " times a power of two" if c.dtype == "float16" else ""
        text += f", sent in {c.dtype}{scaled} and summed in float32"
    if c.algorithm == "psum" or devices == 1:
        return text
    grid = resolve_grid(c.algorithm, devices, plan.topology.grid(c))
    if c.algorithm in ("torus_2d", "hierarchical"):
        text += ", {}x{}".format(*grid)
    steps = cost.steps(c.algorithm, devices, grid)
    load = float(cost.load(c.algorithm, devices, grid))
    return f"{text}; {pluralize(steps, 'step')}, a device sends {load:.4g} times the gradient"


def _explain_augmentation(plan: Plan) -> str:
    data, size = plan.config.data, plan.config.data.image_size
    if data.synthetic_on_device:
        return "augmentation: none; one random batch, made on the devices, is used again and again"
    crops = {
        "none": [],
        "padded": [f"crops after {pluralize(data.crop_padding, 'zero')} on each side"],
        "inception": [
            "crops of {:g} to {:g} of the area".format(*data.crop_area),
            "width / height {:.3g} to {:.3g}".format(*data.crop_aspect),
            f"resized to {size}" + ", antialiased" * data.crop_antialias,
        ],
    }
    parts = crops[data.crop] + ["flip"] * data.flip
    if any(data.color_jitter):
        parts.append("color jitter {:g}, {:g}, {:g}".format(*data.color_jitter))
    named = {"lighting": "PCA lighting", "mixup": "mixup", "cutmix": "CutMix", "erasing": "erasing"}
    parts += [f"{name} {data[key]:g}" for key, name in named.items() if data[key]]
    text = f"augmentation: {', '.join(parts) or 'none'}"
    if data.crop == "inception":
        side, usual = data.evaluation_short_side, usual_short_side(size)
        text += f"; evaluated on the centre {size} of a short side of {side}"
        if abs(side - usual) > FAR * usual:
            text += f" (256/224 of {size}, as is usual, would be {usual}: set it to 0)"
    return text


def _explain_batch_sizes(plan: Plan) -> list[str]:
    sizes, growth = plan.timeline.segments, plan.config.batch_growth
    lines = [f"minibatch: kn={plan.placement.batch_size}, {plan.placement.describe()}"]
    largest, examples = max(plan.placements), plan.data.examples
    if largest > examples and not plan.config.data.synthetic_on_device:
        lines.append(
            f"minibatch: kn={largest:,} is more than the {examples:,} training examples: an update "
            "sees examples more than once"
        )
    for segment in sizes[1:]:
        update, size = segment.first_update, segment.batch_size
        if update >= plan.total_updates:
            lines.append(f"minibatch: kn={size} would begin past the end, at update {update:,}")
            continue
        epoch = plan.timeline.epoch(update)
        lines.append(
            f"minibatch: kn={size} from update {update:,} (epoch {epoch:.4g}), "
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


def _explain_rate(plan: Plan) -> str:
    c, rate = plan.config.learning_rate, plan.learning_rate
    ratio = f"{plan.config.batch_size}/{c.reference_batch_size}"
    factor = {"linear": f" x {ratio}", "sqrt": f" x sqrt({ratio})", "none": ""}[c.scaling]
    text = f"learning rate: {rate.full:.6g}"
    text += f" = {c.reference_learning_rate:.6g}{factor}" if factor else ""
    if rate.warmup_updates:
        power = f", power {c.warmup_power:g}" if c.warmup_power != 1 else ""
        text += (
            f"; {c.warmup} warmup {pluralize(rate.warmup_updates, 'update', form='d')} from "
            f"{rate.warmup_rate:.6g}{power}"
        )
    else:
        text += "; no warmup"
    if plan.config.batch_growth.in_place_of_decay and not rate.decay_updates:
        return f"{text}; no decay, the batch grows instead"
    if plan.config.batch_growth.in_place_of_decay:
        levels = {
            plan.timeline.update_at_epoch(phase.epoch): rate.full * float(phase.rate)
            for phase in phases_of(plan.config)
        }
        changes = ", ".join(f"{levels[t]:.6g} from update {t}" for t in rate.decay_updates)
        return f"{text}; where the batch does not grow, it decays: {changes}"
    if rate.decay_updates:
        reached = [str(t) for t in rate.decay_updates if t < plan.total_updates]
        past = len(rate.decay_updates) - len(reached)
        if reached:
            text += f"; x{c.decay_factor:g} at {noun(len(reached), 'update')} {', '.join(reached)}"
        lie = "lies" if past == 1 else "lie"
        return text + (f"; {past} of its decays {lie} past the end" if past else "")
    text += f"; decay: {c.decay}"
    if c.decay == "polynomial":
        end = plan.total_updates + c.decay_past_end_steps
        text += f", power {c.decay_power:g}, to {c.decay_end_rate:g} at update {end}"
    if c.decay_from == "start" and rate.warmup_updates:
        dropped = float(rate.schedule(rate.warmup_updates))
        text += f", counted from update 0: {dropped:.6g} after warmup"
    return text


def _explain_optimizer(plan: Plan) -> str:
    c = plan.config.optimizer
    flags = jax.tree.leaves(decayed(plan.roles))
    decay = f"{c.weight_decay:g} on {sum(flags)} of {pluralize(len(flags), 'parameter array')}"
    if c.name == "lamb":
        clip = " of norms from {:g} to {:g}".format(*c.norm_clip) if c.norm_clip else ""
        return (
            f"optimizer: LAMB, beta {c.beta1:g} and {c.beta2:g}, epsilon {c.epsilon:g}; weight "
            f"decay {decay}; trust ratio{clip} on as many"
        )
    kind = "Nesterov momentum" if c.nesterov else "momentum"
    lars = c.name == "lars"
    held = "rate and trust ratio" if lars else "rate"
    form = f"equation (9), {held} outside the buffer"
    if c.momentum_form == "rate_inside":
        corrected = "with" if c.momentum_correction else "without"
        form = f"equation (10), {held} inside the buffer, {corrected} momentum correction"
    trust = f"; trust ratio {c.trust_coefficient:g} on kernels" if lars else ""
    trust += ", by its formula where a norm is 0" if c.trust_at_zero == "formula" else ""
    return (
        f"optimizer: {c.name.upper()}, {kind} {c.momentum:g} ({form}); {c.weight_decay_form} "
        f"weight decay {decay}{trust}"
    )


def _explain_precision(plan: Plan) -> list[str]:
    """A line on the products of float32, if there are any."""
    c = plan.config
    if c.dtype == "float64":
        return []
    which = "products of float32" if c.dtype == "float32" else "of its products the classifier's"
    means = {
        "highest": 'in full on every device ("high" would be TF32 on a GPU)',
        "high": "TF32 on a GPU, three bfloat16 passes on a TPU, float32 on a CPU",
        "default": "TF32 on a GPU, one bfloat16 pass on a TPU, float32 on a CPU",
    }
    return [f"network: {which} at precision {c.matmul_precision!r}: {means[c.matmul_precision]}"]


def _explain_normalization(plan: Plan) -> str:
    kind = plan.config.model.normalization
    if kind == "group":
        return "group norm: of each example, in up to 32 groups of two or more channels"
    if kind == "none":
        return "normalization: none; convolutions have biases"
    return _explain_batch_norm(plan)


def _explain_batch_norm(plan: Plan) -> str:
    c, n = plan.config.batch_norm, plan.config.worker_batch_size
    scope = f"per worker, over {pluralize(n, 'example')}"
    if c.synced_workers > 1:
        scope = f"synced over {c.synced_workers} workers, {c.synced_workers * n} examples"
    precise = ""
    if c.precise_examples:
        examples = plan.precise_batches * plan.config.batch_size
        precise = f"; evaluated with statistics of {examples:,} examples"
    return f"batch norm: {scope}; running averages x{c.momentum:g}{precise}"
