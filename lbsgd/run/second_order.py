"""Which statistics of curvature a run takes, and of which layers."""

import ml_collections
from jaxtyping import PyTree

from lbsgd.models.curvature import CurvedLayer, curved_layers, ruled
from lbsgd.models.networks import Network, Outline
from lbsgd.models.selection import trained_part
from lbsgd.step.fisher import Fisher
from lbsgd.system.errors import ConfigError
from lbsgd.tasks.task import Task


def build_fisher(
    config: ml_collections.ConfigDict,
    network: Network,
    found: Outline,
    trained: PyTree[bool],
    task: Task,
) -> Fisher | None:
    """Builds what the statistics of a run's optimizer are; None where it has none.

    Raises:
      ConfigError: the share of a worker's examples is not a whole number of them, or labels are to
        be sampled and the task does not say how.
    """
    c = config.optimizer
    if c.name != "spngd":
        return None
    examples = c.fisher_share * config.worker_batch_size
    if examples != round(examples) or examples < 1:
        raise ConfigError(
            f"optimizer.fisher_share={c.fisher_share:g} of worker_batch_size="
            f"{config.worker_batch_size} is no whole number of examples; take "
            f"{max(1, round(examples)) / config.worker_batch_size:g}"
        )
    if c.fisher == "1mc" and task.sampled_loss is None:
        raise ConfigError(
            "optimizer.fisher='1mc' samples labels from what the network gives, and the task does "
            "not say how (lbsgd.tasks.Task.sampled_loss; no loss of one's own has it); set "
            "optimizer.fisher='empirical'"
        )
    layers = curved_layers(network, found.params, found.batch_stats)
    # A layer of which a part is frozen has no rule: its factors are of all its parameters.
    whole = {name: layer for name, layer in layers.items() if _is_trained(layer, trained)}
    ours = trained_part(ruled(whole, found.params), trained)
    return Fisher(
        network.train,
        whole,
        ours,
        round(examples),
        config.matmul_precision,
        c.stale_threshold,
        task.sampled_loss if c.fisher == "1mc" else None,
    )


def _is_trained(layer: CurvedLayer, trained: PyTree[bool]) -> bool:
    node = trained
    for part in layer.path:
        node = node[part]
    return all(node[name] for name in layer.parameters)
