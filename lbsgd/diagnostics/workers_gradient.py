"""Measures the gradient of each worker: squared norms, and products of neighbours.

A second form of the step, pure, beside `step.device_gradient`, which never has a single worker's
gradient. Its numbers are the same for every placement: the small batch of a noise scale is one
worker, the large one all k of them, wherever they lie.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lbsgd.models.selection import trained_part
from lbsgd.step.loops import scan
from lbsgd.step.reduction import over_devices, sum_of_workers
from lbsgd.step.worker import Batch, Worker, worker_gradient
from lbsgd.workers.placement import DEVICE_AXES, Placement

Gradient = Any


class WorkerGradients(NamedTuple):
    """Holds what is measured of the workers' gradients g_j of the loss, without weight decay.

    Attributes:
      squares: |g_j|^2.
      neighbours: <g_(j-1), g_j> of neighbouring workers.
      mean_square: |G|^2 of their mean G.
    """

    squares: Float[Array, " k"]
    neighbours: Float[Array, " k-1"]
    mean_square: Float[Array, ""]


class _Lanes(NamedTuple):
    """Holds what is measured of the lanes of one device in one accumulation step.

    Attributes:
      first, last: the gradients of these lanes.
      total: the sum over those lanes that hold a worker.
      squares: of each lane.
      products: with the lane before; of the first lane not known here.
    """

    first: Gradient
    last: Gradient
    total: Gradient
    squares: Float[Array, " lanes"]
    products: Float[Array, " lanes"]


def dot(a: Gradient, b: Gradient) -> Float[Array, ""]:
    """Computes the inner product of two trees."""
    # Not as a matrix product, which may be of lower precision.
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))


def _lanes_at_once(
    gradient: Callable[[Any], Gradient], rows: Any, real: Bool[Array, " lanes"]
) -> _Lanes:
    """Measures the lanes side by side, all their gradients held at a time."""
    gradients = jax.vmap(gradient)(rows)
    first, last, but_first, but_last = (
        jax.tree.map(lambda x, part=part: x[part], gradients)
        for part in (0, -1, slice(1, None), slice(None, -1))
    )
    squares = jax.vmap(dot)(gradients, gradients)
    products = jax.vmap(dot)(but_last, but_first)
    products = jnp.concatenate([jnp.zeros_like(squares[:1]), products])
    return _Lanes(
        first, last, jax.tree.map(lambda x: sum_of_workers(x, real), gradients), squares, products
    )


def _lanes_in_turn(
    gradient: Callable[[Any], Gradient], rows: Any, real: Bool[Array, " lanes"], platform: str
) -> _Lanes:
    """Measures lane after lane: four gradients are held at a time, and one worker's activations."""
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    is_first = jnp.arange(real.size, dtype=jnp.int32) == 0

    def turn(carry: tuple[Gradient, Gradient, Gradient], lane: Any) -> tuple[Any, Any]:
        (first, before, total), (row, keep, at_start) = carry, lane
        g = gradient(row)
        # Kept to the end, for the lane before it is on another device.
        first = jax.tree.map(lambda new, old: jnp.where(at_start, new, old), g, first)
        total = jax.tree.map(lambda sum_, new: sum_ + jnp.where(keep, new, 0), total, g)
        # The first lane's product is with zeros here; `accumulate` sets it.
        return (first, g, total), (dot(g, g), dot(before, g))

    start = (zeros, zeros, zeros)
    carry, (squares, products) = scan(turn, start, (rows, real, is_first), platform)
    first, last, total = carry
    return _Lanes(first, last, total, squares, products)


def device_gradients(
    params: Any,
    batch_stats: Any,
    numbers: Any,
    batch: Batch,
    *,
    worker: Worker,
    placement: Placement,
    trained: Any = None,
    in_turn: bool,
) -> WorkerGradients:
    """Measures, on one device, what all devices together know of the k gradients.

    A device sends the gradient of its last lane to the next one, once in an accumulation step. The
    first device takes what the last one sent in the step before.

    Args:
      batch: this device's part, `[A, L, n, ...]`.
    """

    def gradient(rows_and_index: tuple[Batch, Int[Array, ""]]) -> Gradient:
        bound = functools.partial(worker_gradient, worker=worker, trained=trained)
        return bound(params, batch_stats, numbers, *rows_and_index)[0]

    through_lanes = _lanes_at_once
    if in_turn:
        through_lanes = functools.partial(_lanes_in_turn, platform=placement.platform)
    device = lax.axis_index(DEVICE_AXES)
    to_next = [(d, (d + 1) % placement.devices) for d in range(placement.devices)]

    def accumulate(carry: tuple[Gradient, Gradient], step_and_rows: Any) -> tuple[Any, Any]:
        (before, total), (step, rows) = carry, step_and_rows
        each = (rows, placement.worker_of_lane(step))
        lanes = through_lanes(gradient, each, placement.holds_worker(step))
        # Idle slots are the last ones, so what an idle lane sends comes to idle lanes alone.
        sent = lax.ppermute(lanes.last, DEVICE_AXES, to_next)
        neighbour = jax.tree.map(lambda old, new: jnp.where(device == 0, old, new), before, sent)
        products = lanes.products.at[0].set(dot(neighbour, lanes.first))
        total = jax.tree.map(jnp.add, total, lanes.total)
        return (sent, total), (lanes.squares, products)

    # Each step's squares and products are stacked, [A, L]; numbers, where gradients would not fit.
    zeros = jax.tree.map(jnp.zeros_like, trained_part(params, trained))
    steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
    carry, measured = scan(accumulate, (zeros, zeros), (steps, batch), placement.platform)
    # Divided by k, and not averaged over devices: one with idle lanes has summed fewer.
    mean = jax.tree.map(lambda x: x / placement.workers, lax.psum(carry[1], DEVICE_AXES))
    # [A, D, L] is the order of slots, and so of workers; idle slots are past the last of them.
    squares, products = (
        lax.all_gather(x, DEVICE_AXES, axis=1).reshape(-1)[: placement.workers] for x in measured
    )
    # The first worker has none before it.
    return WorkerGradients(squares, products[1:], dot(mean, mean))


def workers_gradient(
    params: Any,
    batch_stats: Any,
    numbers: Any,
    batch: Batch,
    *,
    worker: Worker,
    placement: Placement,
    trained: Any = None,
    in_turn: bool = False,
) -> WorkerGradients:
    """Measures the workers' gradients at `params`, on all devices alike.

    Args:
      batch: the kn examples by slot, `[A, D * L, n, ...]`.
      numbers: of the update whose minibatch it is, as the worker takes them.
      worker: e.g. `step.worker_loss`, bound.
      placement: of workers that share no batch norm.
      trained: like the parameters, True where they are trained, by which alone the gradients are;
        None for all of them.
      in_turn: the lanes of a device one after the other, for memory, instead of side by side.
    """
    on_device = functools.partial(
        device_gradients, worker=worker, placement=placement, trained=trained, in_turn=in_turn
    )
    return over_devices(on_device, placement, replicated=3)(params, batch_stats, numbers, batch)


def compiled(worker: Worker, placement: Placement, *, trained: Any = None, in_turn: bool) -> Any:
    """Compiles (params, batch_stats, numbers, batch) -> `WorkerGradients`; nothing is donated."""
    step = functools.partial(
        workers_gradient, worker=worker, placement=placement, trained=trained, in_turn=in_turn
    )
    # Replicated, for a process cannot fetch what other processes alone hold.
    return jax.jit(step, out_shardings=placement.replicated)
