"""Names of the sweep and of the row for the services that a run sends its metrics to."""

from typing import Any

import ml_collections

from lbsgd.experiments.sweep import Row
from lbsgd.run.config_file import split_variant

# Weights & Biases refuses longer ones.
LONGEST_TAG = 64


def sweep_name(file: str) -> str:
    """Names a sweep by its file and variant: "goyal_table1:mini"."""
    path, variant = split_variant(file)
    return ":".join([path.stem, *variant])


def with_names(
    config: ml_collections.ConfigDict, file: str, row: Row, what: str
) -> ml_collections.ConfigDict:
    """Tells the sinks of a run which sweep and row it is of, where the config does not.

    Args:
      config: resolved.
      file: path[:variant] of the sweep.
      what: of the runs of the row, as "seed 3".
    """
    sweep, name = sweep_name(file), f"{row.name} {what}"
    offered: dict[str, dict[str, Any]] = {
        "wandb": {"group": sweep, "tags": (row.name[:LONGEST_TAG],), "name": name},
        "mlflow": {
            "experiment": sweep,
            "tags": {"sweep": sweep, "row": row.name, "run": what},
            "run_name": name,
        },
    }
    named = {sink: options for sink, options in offered.items() if sink in config.log.sinks}
    if not named:
        return config
    changed = ml_collections.ConfigDict(config)
    given = config.log.sink_options.to_dict()
    options = {sink: {**named.get(sink, {}), **given.get(sink, {})} for sink in {*named, *given}}
    with changed.unlocked(), changed.log.ignore_type():
        changed.log.sink_options = ml_collections.ConfigDict(options)
    return ml_collections.FrozenConfigDict(changed)
