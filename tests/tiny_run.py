"""A run that trains to its end in seconds, and the state that it ends with."""

import pathlib

import jax
import numpy as np
import pytest

from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve

UPDATES = 12


def tiny_config(**keys: object):
    """Four workers of 16 digits on two devices; evaluated and saved on the way, at other times."""
    config = default_config()
    config.update(
        {
            "batch_size": 64,
            "worker_batch_size": 16,
            "total_steps": UPDATES,
            "devices": 2,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {"reference_batch_size": 16, "warmup_epochs": 0.2},
            "optimizer": {"momentum_form": "rate_inside"},
            "data": {"crop": "padded", "crop_padding": 1},
            "evaluation": {"every_steps": 5},
            "checkpoint": {"every_steps": 4, "keep": 2},
            "log": {"every_steps": 1, "sinks": ()},
        }
    )
    config.update_from_flattened_dict(keys)
    return resolve(config)


def final_state(config, workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The leaves of the newest checkpoint, which is that of the end."""
    plan, program, _ = build(config)
    checkpoints = Checkpoints(workdir / "checkpoints", 1, plan.identity(), say=pytest.fail)
    update, state = checkpoints.restore(program.abstract_state())
    checkpoints.close()
    assert update == plan.total_updates
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
