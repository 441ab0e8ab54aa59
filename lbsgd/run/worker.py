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
    # Not measured to pay elsewhere. Several workers at once have small matrices of their own.
    pays = placement.platform == "tpu" and placement.lanes == 1
    # Moments are of products. Those of float32 a TPU can round to bfloat16, unlike sums.
    exact = config.dtype != "float32" or config.matmul_precision == "highest"
    # Statistics of SP-NGD are of the inputs and outputs of single layers.
    return pays and exact and config.optimizer.name != "spngd"
