"""Computes the statistics of precise batch norm for a network that is loaded."""

from collections.abc import Mapping
from typing import Any

import jax

from lbsgd.run.build import Run, build
from lbsgd.run.evaluation import precise_statistics
from lbsgd.system.devices import explain_out_of_memory, precision
from lbsgd.system.errors import ConfigError
from lbsgd.use.stored import TRAINING_SET, Stored


def precise(stored: Stored, keys: Mapping[str, Any], params: Any, stats: Any) -> Any:
    """Computes statistics over a part of the run's own training set, as the run does.

    Args:
      keys: values of the config to set, by dotted key.
      params, stats: of the network.

    Returns:
      a tree like `stats`.

    Raises:
      ConfigError: the training set is not there, or is another; or it is not said how much of it to
        take.
    """
    run = _own_training_set(stored, keys)
    if not run.plan.precise_batches:
        raise ConfigError(
            "the run has batch_norm.precise_examples=0; set it to how many examples of the "
            "training set the precise statistics are to be of"
        )
    replicated = run.plan.placement.replicated
    remedy = "compute on more devices, or set accumulation_steps to more"
    with precision(run.plan.config.dtype), explain_out_of_memory("precise batch norm", remedy):
        variables = jax.device_put((params, stats), replicated)
        where = run.program, run.feed, run.program.moments_step()
        return jax.device_get(precise_statistics(*where, stored.manifest.update, *variables))


def _own_training_set(stored: Stored, keys: Mapping[str, Any]) -> Run:
    """Builds the run with its own training set, where that lies: as it did, or as `keys` say."""
    # Keys of data may be of another set to evaluate on, or say where the run's own lies now.
    others = {key: value for key, value in keys.items() if not key.startswith("data.")}
    problem = ""
    for given in [others, keys] if others != keys else [others]:
        try:
            run = build(stored.config(given))
        except ConfigError as error:
            problem = problem or str(error)
            continue
        if run.plan.data.fingerprint == stored.manifest.identity.get(TRAINING_SET):
            return run
        problem = "there is another training set than the run had"
    raise ConfigError(f"precise statistics are of the run's own training set: {problem}")
