"""Binds what a worker of a run computes."""

import functools
from collections.abc import Callable

import jax
import ml_collections

from lbsgd.models.convolutions import Joining
from lbsgd.models.networks import Network, parameter_type
from lbsgd.step.pixels import normalize
from lbsgd.step.worker import Worker, worker_loss
from lbsgd.tasks.task import Task
from lbsgd.workers.placement import Placement


def build_preprocess(config: ml_collections.ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """Binds `step.pixels.normalize`, in the type of the parameters."""
    return functools.partial(
        normalize, mean=config.data.mean, std=config.data.std, dtype=parameter_type(config)
    )


def bind_worker(
    network: Network, preprocess: Callable[[jax.Array], jax.Array], task: Task
) -> Worker:
    """Binds `step.worker.worker_loss` for a network and a task."""
    return functools.partial(
        worker_loss, network=network.train, preprocess=preprocess, loss=task.loss
    )


def joining(config: ml_collections.ConfigDict, placement: Placement) -> Joining:
    """Chooses which layers of the network are computed as one where workers are placed so.

    It changes no number of a run but for rounding.
    """
    # Two CPU cores are no faster with it, and a GPU has not been measured. Statistics of SP-NGD are
    # of the inputs and outputs of single layers.
    if placement.platform != "tpu" or config.optimizer.name == "spngd":
        return "none"
    # Counted ahead of time for a v5e: the products of several workers at once, each with its own
    # small matrices, move more bytes than they save.
    return "pool" if placement.lanes > 1 else "all"
