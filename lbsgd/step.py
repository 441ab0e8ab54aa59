"""What: one synchronous update of large-minibatch SGD, as pure functions.

    worker_loss        one worker, n examples: loss, and the statistics it leaves behind
    device_gradient    one device: its lanes (vmap) and accumulation steps (scan), summed
    train_step         all devices: shard_map, lax.pmean, and the optimizer's update

The all-reduce stands in `device_gradient`, once, after the accumulation.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec

from lbsgd.data.mixing import erase, mix, partner
from lbsgd.loops import scan
from lbsgd.models.normalization import add_distance, subtract_distance
from lbsgd.optim.learning_rate import Schedule
from lbsgd.workers import DEVICE_AXES, LANE_AXIS, Placement

Batch = Mapping[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """All that a run has to remember.

    Attributes:
      update: the update index t, an int32 scalar: how many updates were made.
      params: parameters.
      batch_stats: running averages of batch norm; {} for a network without.
      opt_state: the optimizer's state.
      skipped: updates whose loss or gradient was not finite, an int32 scalar.
    """

    update: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    skipped: jax.Array


class WorkerResult(NamedTuple):
    """What a worker knows after its n examples; averaged over workers, what an update knows.

    Attributes:
      loss: mean cross-entropy.
      error: top-1 error, a fraction; of mixed examples, against their own label.
      batch_stats: the moments of its batch norms; {} of a network without.
    """

    loss: jax.Array
    error: jax.Array
    batch_stats: Any


class EvalSums(NamedTuple):
    """Sums over examples: loss, wrong at top-1 and top-5, and how many there were."""

    loss: jax.Array
    wrong: jax.Array
    wrong_top5: jax.Array
    examples: jax.Array


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of each example with (1 - s) * one-hot + s / classes (Szegedy et al. 2016).

    Args:
      logits: `[n, classes]`; labels: integers `[n]`.

    Returns:
      nats, `[n]`.
    """
    log_p = jax.nn.log_softmax(logits)
    of_label = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return -(1.0 - label_smoothing) * of_label - label_smoothing * jnp.mean(log_p, axis=-1)


def wrong_at(k: int, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the label is not among the k largest logits, bool `[n]`.

    Among equal logits the lower class comes first. Logits that are not numbers are wrong.
    """
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None]
    before = (logits > of_label) | ((logits == of_label) & (classes < labels[:, None]))
    return (jnp.sum(before, axis=-1) >= k) | jnp.any(jnp.isnan(logits), axis=-1)


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> jax.Array:
    """uint8 images `[..., c]` to (x / 255 - mean) / std, by channel."""
    channels = (1,) * (images.ndim - 1) + (-1,)
    offset = jnp.asarray(mean, dtype).reshape(channels)
    scale = jnp.asarray(std, dtype).reshape(channels)
    return (images.astype(dtype) / 255.0 - offset) / scale


def worker_loss(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    model: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    label_smoothing: float,
) -> WorkerResult:
    """One worker: the loss of its n examples, batch norm seeing exactly those (equation 5).

    Args:
      batch: image, label, and what `Mixing.draw` drew for them, each `[n, ...]`.
      preprocess: uint8 images -> input of the network.
    """
    images = preprocess(batch["image"])
    if "erase_box" in batch:
        images = erase(images, batch["erase_box"])
    if "mix_share" in batch:
        images = mix(images, batch["mix_share"], batch.get("mix_box"))
    logits, left = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    losses = cross_entropy(logits, batch["label"], label_smoothing)
    if "mix_share" in batch:
        share = batch["mix_share"].astype(losses.dtype)
        others = cross_entropy(logits, partner(batch["label"]), label_smoothing)
        losses = share * losses + (1 - share) * others
    loss = jnp.mean(losses)
    error = jnp.mean(wrong_at(1, logits, batch["label"]).astype(loss.dtype))
    return WorkerResult(loss, error, left.get("batch_stats", {}))


def with_distance(worker: Callable[..., WorkerResult]) -> Callable[..., WorkerResult]:
    """The worker, whose statistics also say how far its means lie from the running ones.

    Their average over workers then holds mean(var) + var(mean), once `subtract_distance` is done.
    """

    def measured(params: Any, batch_stats: Any, batch: Batch) -> WorkerResult:
        result = worker(params, batch_stats, batch)
        return result._replace(batch_stats=add_distance(result.batch_stats, batch_stats))

    return measured


def mean_over_lanes(
    worker: Callable[[Batch], WorkerResult], rows: Batch, step: jax.Array, placement: Placement
) -> WorkerResult:
    """The workers of one accumulation step on one device: their share of the mean over k.

    The share is (devices / k) times their sum, so that `lax.pmean` over devices of the sum over
    steps is the mean over workers. Idle slots are dropped by selection.

    Args:
      rows: `[L, n, ...]`.
      step: the accumulation step.
    """
    slot = (step * placement.devices + lax.axis_index(DEVICE_AXES)) * placement.lanes
    real = slot + jnp.arange(placement.lanes, dtype=jnp.int32) < placement.workers
    groups = (placement.lanes // placement.lanes_in_group, placement.lanes_in_group)
    rows = jax.tree.map(lambda x: x.reshape(groups + x.shape[1:]), rows)
    results = jax.vmap(jax.vmap(worker, axis_name=LANE_AXIS))(rows)
    weight = placement.devices / placement.workers

    def share(x: jax.Array) -> jax.Array:
        x = x.reshape((placement.lanes, *x.shape[2:]))
        keep = real.reshape((-1,) + (1,) * (x.ndim - 1))
        return weight * jnp.sum(jnp.where(keep, x, 0), axis=0)

    return jax.tree.map(share, results)


def sum_over_steps(f: Callable[[Any], Any], steps: Any, platform: str) -> Any:
    """sum_a f(steps[a]) by `lax.scan`, so that only one step is in memory at a time.

    Args:
      platform: of the devices, as for `loops.scan`.
    """
    first = jax.tree.map(lambda x: x[0], steps)
    if jax.tree.leaves(steps)[0].shape[0] == 1:
        return f(first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, first))

    def add(total: Any, step: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, f(step)), None

    return scan(add, zeros, steps, platform)[0]


def over_devices(f: Callable[..., Any], placement: Placement, *, replicated: int) -> Any:
    """`f(*replicated arguments, batch)` on every device, by `shard_map`.

    What f returns must be alike on all devices. Checking that (`check_vma`) is off because
    collectives over a vmap axis cannot be traced with it; it also makes the gradient with respect
    to a replicated argument the device's own, with no reduction but those written out.
    """
    specs = (PartitionSpec(),) * replicated + (placement.batch_spec,)
    return jax.shard_map(
        f, mesh=placement.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
    )


def device_gradient(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    worker: Callable[..., WorkerResult],
    placement: Placement,
    gradient_mean: Callable[[Any], Any] | None = None,
) -> tuple[Any, WorkerResult]:
    """On one device: the gradient of the mean loss over all k workers, and their mean result.

    The mean over lanes is differentiated, not each lane: the memory is that of one gradient.

    Args:
      batch: this device's part, `[A, L, n, ...]`.
      gradient_mean: the mean over devices of a tree; None for `lax.pmean`, in one with the result.
    """

    def loss(params: Any, rows: Batch, step: jax.Array) -> tuple[jax.Array, WorkerResult]:
        result = mean_over_lanes(
            functools.partial(worker, params, batch_stats), rows, step, placement
        )
        return result.loss, result

    def gradient(step_and_rows: tuple[jax.Array, Batch]) -> tuple[Any, WorkerResult]:
        step, rows = step_and_rows
        return jax.grad(loss, has_aux=True)(params, rows, step)

    steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
    gradients, result = sum_over_steps(gradient, (steps, batch), placement.platform)
    if gradient_mean is None:
        return lax.pmean((gradients, result), DEVICE_AXES)
    return gradient_mean(gradients), lax.pmean(result, DEVICE_AXES)


def all_finite(tree: Any) -> jax.Array:
    """Whether every number in the tree is finite, a bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    worker: Callable[..., WorkerResult],
    optimizer: optax.GradientTransformationExtraArgs,
    schedules: Mapping[str, Schedule],
    placement: Placement,
    batch_norm_momentum: float,
    total_variance: bool,
    gradient_mean: Callable[[Any], Any] | None = None,
    statistics: Callable[..., Any] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One update (Goyal et al., equation 4, with momentum and decay as the optimizer has them).

    Where the loss or the gradient is not finite, the update leaves the state as it was, but for its
    counters: the host learns of it updates later.

    Args:
      state: donated when compiled.
      batch: the kn examples by slot, `[A, D * L, n, ...]`.
      worker: (params, batch_stats, rows) -> `WorkerResult`, e.g. `worker_loss`, bound.
      schedules: what varies with the update index, to be among the metrics, by name.
      batch_norm_momentum: 0.9 for r <- 0.9 r + 0.1 (mean over workers).
      total_variance: average mean(var) + var(mean) instead of mean(var).
      gradient_mean: see `device_gradient`.
      statistics: (gradients, params, changes, opt_state) -> what goes into the metrics as `layers`.

    Returns:
      the next state, and the metrics of this update.
    """
    if total_variance:
        worker = with_distance(worker)
    gradient = over_devices(
        functools.partial(
            device_gradient, worker=worker, placement=placement, gradient_mean=gradient_mean
        ),
        placement,
        replicated=2,
    )
    gradients, result = gradient(state.params, state.batch_stats, batch)
    changes, opt_state = optimizer.update(
        gradients, state.opt_state, state.params, update_index=state.update
    )
    stats = result.batch_stats
    if total_variance:
        stats = subtract_distance(stats, state.batch_stats)
    m = batch_norm_momentum
    finite = all_finite((result.loss, gradients))
    kept = (state.params, state.batch_stats, state.opt_state)
    changed = (
        jax.tree.map(jnp.add, state.params, changes),
        jax.tree.map(lambda r, new: m * r + (1.0 - m) * new, state.batch_stats, stats),
        opt_state,
    )
    params, batch_stats, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), changed, kept
    )
    skipped = state.skipped + jnp.where(finite, 0, 1).astype(state.skipped.dtype)
    metrics = {
        "train_loss": result.loss,
        "train_error": 100.0 * result.error,
        "gradient_norm": optax.tree.norm(gradients),
        "skipped": skipped,
        **{name: schedule(state.update) for name, schedule in schedules.items()},
    }
    if statistics:
        metrics["layers"] = statistics(gradients, state.params, changes, opt_state)
    return TrainState(state.update + 1, params, batch_stats, opt_state, skipped), metrics


def moments_step(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    worker: Callable[..., WorkerResult],
    placement: Placement,
    total_variance: bool,
) -> Any:
    """The batch-norm moments of one minibatch with fixed parameters, averaged over its workers.

    Averaged over several minibatches they are the statistics of "precise" batch norm (Goyal et
    al., section 5.1, on evaluating early; Wu and Johnson 2021).
    """
    if total_variance:
        worker = with_distance(worker)

    def on_device(params: Any, batch_stats: Any, batch: Batch) -> Any:
        def moments(step_and_rows: tuple[jax.Array, Batch]) -> Any:
            step, rows = step_and_rows
            bound = functools.partial(worker, params, batch_stats)
            return mean_over_lanes(bound, rows, step, placement).batch_stats

        steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
        stats = lax.pmean(sum_over_steps(moments, (steps, batch), placement.platform), DEVICE_AXES)
        return subtract_distance(stats, batch_stats) if total_variance else stats

    return over_devices(on_device, placement, replicated=2)(params, batch_stats, batch)


def eval_step(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    model: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    placement: Placement,
) -> EvalSums:
    """Sums over the examples of a batch whose `mask` is set.

    Args:
      batch: image `[1, D * L, e, ...]`, label and mask `[1, D * L, e]`.
    """

    def on_device(params: Any, batch_stats: Any, batch: Batch) -> EvalSums:
        images, labels, mask = (
            batch[key].reshape((-1, *batch[key].shape[3:])) for key in ("image", "label", "mask")
        )
        variables = {"params": params, "batch_stats": batch_stats}
        logits = model.apply(variables, preprocess(images), train=False)
        loss = jnp.where(mask, cross_entropy(logits, labels), 0)
        wrong, wrong_top5 = (mask & wrong_at(k, logits, labels) for k in (1, 5))
        return lax.psum(EvalSums(*map(jnp.sum, (loss, wrong, wrong_top5, mask))), DEVICE_AXES)

    return over_devices(on_device, placement, replicated=2)(params, batch_stats, batch)
