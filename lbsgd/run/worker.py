"""Binds what a worker of a run computes."""

import functools
from collections.abc import Callable

import jax
import ml_collections

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


def joins_layers(config: ml_collections.ConfigDict, placement: Placement) -> bool:
    """Chooses whether layers of the network are computed as one where workers are placed so.

    It changes no number of a run but for rounding.
    """
    # Two CPU cores are no faster with it, and a GPU has not been measured. By the bytes that are
    # counted for a v5e, several workers at once gain nothing, each with its own small matrices.
    pays = placement.platform == "tpu" and placement.lanes == 1
    # Statistics of SP-NGD are of the inputs and outputs of single layers.
    return pays and config.optimizer.name != "spngd"
