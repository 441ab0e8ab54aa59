"""Targets that a task makes of labels have types that devices have."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

from lbsgd.run.config import default_config
from lbsgd.tasks.build import build_task, targets_of


@pytest.mark.parametrize(
    ("made", "narrow"),
    [("int64", "int32"), ("float64", "float32"), ("float16", "float16"), ("uint8", "uint8")],
)
def test_numpys_wide_types_are_narrowed_without_a_warning(made, narrow):
    task = build_task(default_config(), 10)
    task = dataclasses.replace(task, targets=lambda labels: {"parity": (labels % 2).astype(made)})
    found = targets_of(task, np.arange(4, dtype=np.int32))["parity"]
    assert (found.dtype, found.tolist()) == (np.dtype(narrow), [0, 1, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape = jax.ShapeDtypeStruct(found.shape, found.dtype)
        assert jax.eval_shape(lambda x: x, shape).dtype == narrow


def test_with_64_bit_types_they_stay(x64):
    task = build_task(default_config(), 10)
    task = dataclasses.replace(task, targets=lambda labels: {"far": labels.astype(np.int64)})
    assert targets_of(task, np.arange(4, dtype=np.int32))["far"].dtype == np.int64
