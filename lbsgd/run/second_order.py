"""How a run makes natural gradients: of which statistics, of which layers, on which devices."""

import math
from collections.abc import Callable
from typing import Any

import ml_collections
from jaxtyping import PyTree

from lbsgd.models.curvature import FULL, UNIT_WISE, CurvedLayer, curved_layers, ruled
from lbsgd.models.networks import Network, Outline
from lbsgd.models.selection import trained_part
from lbsgd.optim.kept import stacks_of
from lbsgd.optim.preconditioner import Preconditioner
from lbsgd.optim.refresh import Sharing
from lbsgd.step.fisher import Fisher
from lbsgd.step.second_order import SecondOrder
from lbsgd.system.errors import ConfigError
from lbsgd.tasks.task import Task
from lbsgd.workers.placement import DEVICE_AXES


def build_second_order(
    config: ml_collections.ConfigDict,
    network: Network,
    found: Outline,
    trained: PyTree[bool],
    task: Task,
    devices: int,
) -> SecondOrder | None:
    """Builds what makes the natural gradients of a run; None for a first-order optimizer.

    Raises:
      ConfigError: the share of a worker's examples is not a whole number of them, the task does not
        say how to sample labels, or another key does not go with it (`_check`).
    """
    c = config.optimizer
    if c.name != "spngd":
        return None
    if config.allreduce.algorithm != "psum" or config.allreduce.dtype != "own":
        raise ConfigError(
            "optimizer.name=spngd has an exchange of its own, and none by allreduce.algorithm or "
            "allreduce.dtype; leave these as they are (optimizer.statistics_dtype halves what "
            "statistics send)"
        )
    _check(config)
    layers = {
        name: _with_kind(layer, c.norm_fisher)
        for name, layer in curved_layers(network, found.params, found.batch_stats).items()
        # A layer of which a part is frozen has no rule: its factors are of all its parameters.
        if _is_trained(layer, trained)
    }
    fisher = Fisher(
        network.train,
        layers,
        _examples(config),
        config.matmul_precision,
        _sampled_loss(task) if c.fisher == "1mc" else None,
        # Exchanges have no order in conditions (`lbsgd.workers.collectives.turns`).
        exchanges=config.batch_norm.synced_workers > 1,
    )
    sharing = Sharing(
        layers,
        stacks_of(layers, devices),
        c.stale_threshold,
        DEVICE_AXES,
        None if c.statistics_dtype == "own" else c.statistics_dtype,
    )
    return SecondOrder(
        fisher,
        Preconditioner(sharing, trained_part(ruled(layers, found.params), trained)),
    )


def _examples(config: ml_collections.ConfigDict) -> int:
    """Counts the examples of a worker that statistics are of."""
    share, of = config.optimizer.fisher_share, config.worker_batch_size
    examples = max(1, round(share * of))
    if not math.isclose(share * of, examples, rel_tol=1e-4):
        raise ConfigError(
            f"optimizer.fisher_share={share:g} of worker_batch_size={of} is no whole number of "
            f"examples; take {examples / of:g}"
        )
    return examples


def _check(config: ml_collections.ConfigDict) -> None:
    """Checks what does not go together."""
    c = config.optimizer
    if c.rate_multipliers and c.weight_rescaling != "none":
        raise ConfigError(
            "optimizer.rate_multipliers would move kernels from the norm that optimizer."
            f"weight_rescaling={c.weight_rescaling!r} holds them to; set that to 'none', or leave "
            "out the multipliers"
        )
    if c.momentum_schedule == "with_rate" and config.learning_rate.warmup != "none":
        raise ConfigError(
            "optimizer.momentum_schedule='with_rate' has the momentum at its highest in the first "
            "update; set learning_rate.warmup='none', or optimizer.momentum_schedule='constant'"
        )


def _sampled_loss(task: Task) -> Callable[..., Any]:
    if task.sampled_loss is None:
        raise ConfigError(
            "optimizer.fisher='1mc' samples labels from what the network gives, and the task does "
            "not say how (lbsgd.tasks.Task.sampled_loss; no loss of one's own has it); set "
            "optimizer.fisher='empirical'"
        )
    return task.sampled_loss


def _with_kind(layer: CurvedLayer, norm_fisher: str) -> CurvedLayer:
    full = layer.kind == UNIT_WISE and norm_fisher == "full"
    return layer._replace(kind=FULL) if full else layer


def _is_trained(layer: CurvedLayer, trained: PyTree[bool]) -> bool:
    node = trained
    for part in layer.path:
        node = node[part]
    return all(node[name] for name in layer.parameters)
