"""What an evaluation finds, and the line that says it."""

import re

import jax
import numpy as np
import pytest
from monitors import Lines, quiet

from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.evaluation import Evaluation


@pytest.mark.parametrize(
    ("classes", "outputs", "top5"),
    [
        (3, 0, False),
        pytest.param(5, 10, False, marks=pytest.mark.long),
        pytest.param(6, 0, True, marks=pytest.mark.long),
    ],
)
def test_there_is_a_top5_error_of_more_than_5_classes(classes, outputs, top5):
    """However many outputs the network has: with 5 classes or fewer it says nothing."""
    config = default_config()
    config.update({"batch_size": 8, "worker_batch_size": 8, "total_steps": 1, "devices": 1})
    config.update({"learning_rate": {"warmup": "none"}})
    config.model.update({"name": "cifar_resnet8", "width": 0.25, "num_classes": outputs})
    config.data.update({"source": "synthetic", "synthetic_classes": classes, "image_size": 8})
    config.data.update({"synthetic_examples": 20, "synthetic_validation_examples": 20})
    run, said = build(resolve(config)), Lines()
    monitor = quiet(run.plan, said=said)
    values = Evaluation(run.program, run.feed, monitor)(0, run.program.start())
    assert values.keys() == {"val_loss", "val_error"} | ({"val_error_top5"} if top5 else set())
    monitor.evaluation(1, values)
    (line,) = said
    end = r"  top-5 \d+\.\d\d%" if top5 else ""
    assert re.fullmatch(rf"epoch 0\.40  update 1  validation loss \S+  error \d+\.\d\d%{end}", line)


def evaluated(dtype: str) -> dict[str, float]:
    """Evaluates the initial state, with the statistics of three minibatches."""
    config = default_config()
    config.update({"batch_size": 32, "worker_batch_size": 16, "total_steps": 1, "devices": 2})
    config.update({"dtype": dtype, "learning_rate": {"warmup": "none"}})
    config.model.update({"name": "cifar_resnet8", "width": 0.25, "zero_init_residual": False})
    config.update({"batch_norm": {"precise_examples": 96}})
    config.data.update({"source": "synthetic", "synthetic_classes": 3, "image_size": 8})
    config.data.update({"synthetic_examples": 96, "synthetic_validation_examples": 32})
    run = build(resolve(config))
    values = Evaluation(run.program, run.feed, quiet(run.plan))(0, run.program.start())
    assert values is not None
    return values


@pytest.mark.long
def test_an_evaluation_is_of_the_run_s_own_type_in_any_process():
    """Float64 is what it is where all is that; float32 after it is what it is alone."""
    alone = evaluated("float32")
    double = evaluated("float64")
    assert evaluated("float32") == alone
    with jax.enable_x64(True):
        assert evaluated("float64") == double
    assert double["val_loss"] != alone["val_loss"]
    np.testing.assert_allclose(double["val_loss"], alone["val_loss"], rtol=1e-4)
