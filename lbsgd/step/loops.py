"""Loops over accumulation steps and lanes by `lax.scan`, whose convolutions a CPU runs fast too.

XLA's compiler for CPUs brings convolutions into the one form that its fast kernels take, images
`[n, h, w, c]` and filters `[h, w, in, out]`, by transposing what they are given; but only those
that stand outside of loops (its pass ConvCanonicalization, seen in jaxlib 0.10 and 0.11). The
gradients of a convolution come in other forms, and inside a loop they fall to a kernel that is
about a hundred times slower. So what is to run in a loop on a CPU is transposed here, in the same
way: the sums are the same.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, platform: str
) -> tuple[Any, Any]:
    """Runs `lax.scan`, but without a loop around a single step, and not slow on a CPU.

    Args:
      f: (carry, step) -> (carry, output of the step).
      steps: a tree of arrays `[A, ...]`, of which f gets one after the other.
      platform: that it is to be compiled for: "cpu", "gpu" or "tpu".

    Returns:
      the last carry, and the outputs `[A, ...]`.
    """
    # A loop of one step would keep XLA from fusing across its borders, and its carry alive.
    if jax.tree.leaves(steps)[0].shape[0] > 1:
        # Compilers for GPUs and TPUs choose the layouts inside of loops too.
        return lax.scan(canonical_convolutions(f) if platform == "cpu" else f, carry, steps)
    carry, output = f(carry, jax.tree.map(lambda x: x[0], steps))
    return carry, jax.tree.map(lambda x: x[None], output)


def canonical_convolutions(f: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps f so that each convolution has images `[n, ..., c]` and filters `[..., in, out]`.

    Those in nested loops, conditions and rematerialised parts too. Convolutions in groups stay as
    they are. The function that is returned must not be differentiated: its gradient would have
    convolutions of other forms again.
    """

    def transformed(*args: Any) -> Any:
        # Traced, for the convolutions of a gradient stand in nobody's code: JAX makes them.
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        outputs = _evaluate(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return transformed


def _evaluate(closed: core.ClosedJaxpr, args: list[Any]) -> list[Any]:
    """Evaluates a traced function, equation by equation."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args]))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        if _is_plain_convolution(equation):
            images, filters = map(read, equation.invars)
            # What is bound anew would lose the phase of the step that it belongs to.
            with jax.named_scope(str(equation.source_info.name_stack)):
                outputs = [_convolve(images, filters, equation.params)]
        else:
            # As a program of one equation, JAX itself knows how to run it. Operands once each: no
            # program may bind a variable twice, and x * x has one twice.
            names = list(dict.fromkeys(v for v in equation.invars if isinstance(v, core.Var)))
            alone = jaxpr.replace(
                constvars=[],
                invars=names,
                outvars=equation.outvars,
                eqns=[equation.replace(params=_canonical_parameters(equation.params))],
                effects=equation.effects,
            )
            outputs = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*map(read, names))
        values.update(zip(equation.outvars, outputs))
    return [read(atom) for atom in jaxpr.outvars]


def _canonical_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Transforms the parameters of an equation: the functions among them, whatever it is."""

    def canonical(value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr):
            return _canonical(value)
        if isinstance(value, core.Jaxpr):
            # Open ones, as of `jax.checkpoint`, have no constants: these are arguments there.
            return _canonical(core.ClosedJaxpr(value, ())).jaxpr
        if type(value) is tuple:  # of the branches of a condition
            return tuple(map(canonical, value))
        return value

    # What has none stays as it is, for tracing all functions anew would take seconds.
    if not any(map(_has_convolution, core.jaxprs_in_params(params))):
        return dict(params)
    return {key: canonical(value) for key, value in params.items()}


def _canonical(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Traces a traced function anew, with canonical convolutions."""
    inputs = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in closed.in_avals
    ]
    return jax.make_jaxpr(lambda *args: _evaluate(closed, list(args)))(*inputs)


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    """Tells whether a traced function has a convolution to transform, at any depth."""
    return any(
        _is_plain_convolution(equation)
        or any(map(_has_convolution, core.jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def _is_plain_convolution(equation: core.JaxprEqn) -> bool:
    """Tells whether an equation is a convolution that is not in groups."""
    if equation.primitive is not lax.conv_general_dilated_p:
        return False
    return equation.params["feature_group_count"] == equation.params["batch_group_count"] == 1


def _convolve(
    images: Float[Array, "..."], filters: Float[Array, "..."], params: Mapping[str, Any]
) -> Float[Array, "..."]:
    """Convolves as `lax.conv_general_dilated` of these parameters, its dimensions put in order."""
    given = params["dimension_numbers"]
    n = images.ndim
    in_order = lax.ConvDimensionNumbers(
        (0, n - 1, *range(1, n - 1)), (n - 1, n - 2, *range(n - 2)), (0, n - 1, *range(1, n - 1))
    )
    # Those specs name batch, feature, space; of filters out, in, space.
    batch, feature, *space = given.lhs_spec
    images = lax.transpose(images, (batch, *space, feature))
    out, in_, *space = given.rhs_spec
    filters = lax.transpose(filters, (*space, in_, out))
    # Strides, padding and dilations go by spatial dimension, whose order stays.
    result = lax.conv_general_dilated_p.bind(
        images, filters, **{**params, "dimension_numbers": in_order}
    )
    batch, feature, *space = given.out_spec
    back = {axis: at for at, axis in enumerate((batch, *space, feature))}
    return lax.transpose(result, [back[axis] for axis in range(n)])
