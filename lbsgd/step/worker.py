"""Computes the loss of one worker over its n examples, what it measures, and its gradient."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key, UInt8

from lbsgd.models.normalization import add_distance
from lbsgd.models.selection import trained_part, with_frozen
from lbsgd.step.numbers import Numbers
from lbsgd.step.pixels import erase, mix
from lbsgd.workers.placement import LANE_AXIS

# Examples by key: `image`, what the task makes of their labels, and what was drawn for them.
Batch = Mapping[str, jax.Array]


class WorkerResult(NamedTuple):
    """Holds what a worker knows after its n examples; reduced over workers, what an update knows.

    Attributes:
      loss: averaged over workers, and differentiated.
      metrics: the task's, by name, each reduced as the task says.
      batch_stats: what its norms leave, averaged over workers; {} of a network without.
    """

    loss: Float[Array, ""]
    metrics: Mapping[str, Any]
    batch_stats: Any


# (params, batch_stats, numbers, its rows [n, ...], its index) -> its result
# by keyword too: a network, or a loss, in place of its own.
Worker = Callable[..., WorkerResult]


def worker_key(numbers: Numbers, index: Int[Array, ""]) -> Key[Array, ""]:
    """Makes the key of a worker's random numbers in an update: a function of nothing else."""
    # Named, for what a process sets as JAX's own default must not change what is drawn.
    key = jax.random.key(numbers.seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, numbers.update_index), index)


def sampling_key(numbers: Numbers, index: Int[Array, ""]) -> Key[Array, ""]:
    """Makes the key by which labels are sampled from a worker's outputs in an update."""
    # Of no stream of the network's: it has the key itself, and that folded with 1.
    return jax.random.fold_in(worker_key(numbers, index), 2)


def worker_loss(
    params: Any,
    batch_stats: Any,
    numbers: Numbers,
    batch: Batch,
    index: Int[Array, ""],
    *,
    network: Callable[..., tuple[Any, Any]],
    preprocess: Callable[[UInt8[Array, "n h w c"]], Float[Array, "n h w c"]],
    loss: Callable[..., tuple[Float[Array, ""], Mapping[str, Any]]],
) -> WorkerResult:
    """Computes the loss of one worker, its batch norm seeing exactly its n examples.

    Args:
      batch: image, targets, and what `Mixing.draw` drew for them, each `[n, ...]`; with running
        mixup `mixed_image`, which the network is given, and `mixed_target`.
      index: of the worker among all k, for its random numbers.
      network: (params, batch_stats, images, key) -> outputs, and what its norms leave.
      preprocess: uint8 images -> input of the network.
      loss: (outputs, batch, **numbers of the task) -> loss, metrics; see `lbsgd.tasks.Task`.
    """
    with jax.named_scope("augment"):
        images = _augmented(batch, preprocess)
    with jax.named_scope("forward"):
        outputs, left = network(params, batch_stats, images, worker_key(numbers, index))
    with jax.named_scope("loss"):
        value, metrics = loss(outputs, batch, **numbers.task)
    return WorkerResult(value, dict(metrics), left)


def _augmented(
    batch: Batch, preprocess: Callable[[UInt8[Array, "n h w c"]], Float[Array, "n h w c"]]
) -> Float[Array, "n h w c"]:
    """Gives the input of the network, erased and mixed where that was drawn."""
    if "mixed_image" in batch:
        return batch["mixed_image"]
    # Erased before they are mixed, so that a partner brings its own box along.
    images = erased(batch, preprocess(batch["image"]))
    if "mix_share" in batch:
        images = mix(images, batch["mix_share"], batch.get("mix_box"))
    return images


def erased(batch: Batch, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Erases a box of each image, where boxes were drawn."""
    return erase(images, batch["erase_box"]) if "erase_box" in batch else images


def gradient_of(
    loss: Callable[[Any], tuple[Float[Array, ""], WorkerResult]], params: Any, trained: Any = None
) -> tuple[Any, WorkerResult]:
    """Computes the gradient of a loss by the parameters that are trained, and its result.

    Args:
      loss: params -> the loss, and what goes along with it.
      trained: like the parameters, True where they are trained; None for all of them. The gradient
        has None in place of the others.
    """

    def of_trained(part: Any) -> tuple[Float[Array, ""], WorkerResult]:
        return loss(with_frozen(part, params))

    # By no more than that, so that nothing is computed for the others: neither their gradients nor,
    # below the lowest layer that is trained, those of activations.
    # Not value_and_grad: the value is in the result.
    return jax.grad(of_trained, has_aux=True)(trained_part(params, trained))


def worker_gradient(
    params: Any,
    batch_stats: Any,
    numbers: Any,
    batch: Batch,
    index: Int[Array, ""],
    *,
    worker: Worker,
    trained: Any = None,
) -> tuple[Any, WorkerResult]:
    """Computes the gradient of one worker's own loss, and its result.

    It needs no mesh; but batch norm that is synced over devices needs theirs.

    Args:
      numbers: of the update, as the worker takes them.
      batch: its rows, `[n, ...]`.
      trained: as in `gradient_of`.
    """

    def loss(params: Any) -> tuple[Float[Array, ""], WorkerResult]:
        # The norms of a network for synced batch norm ask for the axis, even of a group of one.
        alone = jax.tree.map(lambda x: x[None], (batch, index))
        bound = functools.partial(worker, params, batch_stats, numbers)
        result = jax.tree.map(lambda x: x[0], jax.vmap(bound, axis_name=LANE_AXIS)(*alone))
        return result.loss, result

    return gradient_of(loss, params, trained)


def with_distance(worker: Worker, of_step: Any) -> Worker:
    """Wraps a worker so that its statistics also say how far its means lie from the running ones.

    Their average over workers then holds mean(var) + var(mean), once `subtract_distance` is done.

    Args:
      of_step: like the statistics, True where they are moments.
    """

    def measured(params: Any, batch_stats: Any, *rest: Any, **keywords: Any) -> WorkerResult:
        result = worker(params, batch_stats, *rest, **keywords)
        # From the running means: squares of the means themselves would cancel in the subtraction.
        return result._replace(batch_stats=add_distance(result.batch_stats, batch_stats, of_step))

    return measured
