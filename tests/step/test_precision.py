"""Products of float32 are at the precision that the config asks for, wherever there are any.

What a TPU or a GPU makes of it is XLA's; what XLA is asked for stands in the traced programs.
"""

from collections.abc import Iterator

import jax
import pytest
from jax import lax
from jax.extend import core

from lbsgd.diagnostics import workers_gradient
from lbsgd.run.build import Run, build
from lbsgd.run.config import default_config, resolve

PRODUCTS = (lax.dot_general_p, lax.conv_general_dilated_p)
ASKED = {
    "highest": lax.Precision.HIGHEST,
    "high": lax.Precision.HIGH,
    "default": lax.Precision.DEFAULT,
}
# Of cifar_resnet8: convolutions and the classifier. A gradient has two products of each, but for
# the images', and twice as many.
LAYERS = 8


def run_of(dtype: str, precision: str | None, optimizer: str = "sgd") -> Run:
    config = default_config()
    config.update(
        {
            "dtype": dtype,
            "batch_size": 16,
            "worker_batch_size": 4,
            "total_steps": 4,
            "devices": 2,
            "accumulation_steps": 2,  # so that loops rewrite the convolutions
            "model": {"name": "cifar_resnet8", "width": 0.125},
            "learning_rate": {"warmup": "none", "decay": "none"},
            "optimizer": {"name": optimizer, "nesterov": False},
            "batch_norm": {"running_variance": "total"},
        }
    )
    if precision:
        config.matmul_precision = precision
    if optimizer == "lamb":
        config.optimizer.weight_decay_form = "decoupled"
    return build(resolve(config))


def products(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Dot products and convolutions, in loops and branches too."""
    for equation in jaxpr.eqns:
        if equation.primitive in PRODUCTS:
            yield equation
        for inside in core.jaxprs_in_params(equation.params):
            yield from products(inside)


def programs(run: Run) -> dict[str, tuple[core.Jaxpr, int]]:
    """All that a run computes on devices, and the fewest products that are in it."""
    state, batch = run.program.abstract_state(), run.program.abstract_batch()
    read = (state.params, state.batch_stats)
    numbers = run.plan.number_shapes()
    batches = run.feed.eval_batches()
    rows = jax.eval_shape(lambda: next(iter(batches)))
    looks = workers_gradient.compiled(run.plan.worker, run.plan.placement, in_turn=True)
    traced = {
        "train": (run.plan.trace(), 3 * LAYERS - 1),
        "moments": (jax.jit(run.plan.moments_step()).trace(*read, numbers, batch), LAYERS - 1),
        "evaluation": (jax.jit(run.plan.eval_step()).trace(*read, rows), LAYERS),
        "workers": (looks.trace(*read, numbers, batch), 3 * LAYERS - 1),
    }
    return {name: (program.jaxpr.jaxpr, least) for name, (program, least) in traced.items()}


def of_float32(equation: core.JaxprEqn) -> bool:
    return any(atom.aval.dtype == "float32" for atom in equation.invars)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("float32", None),
        pytest.param("bfloat16", "default", marks=pytest.mark.long),
        pytest.param("float32", "high", marks=pytest.mark.long),
        pytest.param("float32", "default", marks=pytest.mark.long),
        pytest.param("bfloat16", None, marks=pytest.mark.long),
    ],
)
def test_every_product_of_float32_is_at_the_precision_asked_for(dtype, precision):
    """Forwards and backwards; whatever the process asks of products that do not say."""
    asked = ASKED[precision or "highest"]
    with jax.default_matmul_precision("tensorfloat32"):
        found = programs(run_of(dtype, precision))
    for name, (jaxpr, least) in found.items():
        there = list(products(jaxpr))
        assert len(there) >= least, name
        full = [equation for equation in there if of_float32(equation)]
        # Of bfloat16 the classifier alone.
        assert len(full) >= (least if dtype == "float32" else least // LAYERS), name
        for equation in full:
            assert equation.params["precision"] == (asked, asked), (name, equation.primitive)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_optimizers_have_no_products_of_their_own(optimizer):
    """Norms are sums, which are float32 on any device."""
    counts = []
    for name in ("sgd", optimizer):
        run = run_of("float32", None, name)
        counts.append(len(list(products(run.plan.trace().jaxpr.jaxpr))))
    assert counts[0] == counts[1] >= 3 * LAYERS - 1
