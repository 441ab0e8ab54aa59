"""Brings functions into the forms that XLA for CPUs runs fast; the sums are the same.

Its fast kernels for convolutions take images `[n, h, w, c]` and filters `[h, w, in, out]`. XLA
transposes what it is given to that, but only outside of loops (its pass ConvCanonicalization, seen
in jaxlib 0.10 and 0.11). The gradients of a convolution come in other forms, and inside a loop they
fall to a kernel that is about a hundred times slower. So they are transposed here. Where a
convolution is not the fastest form of itself, another one takes its place (`cpu_convolutions`), and
so it is with the gradient of max pooling (`cpu_pooling`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from lbsgd.step.cpu_convolutions import convolve
from lbsgd.step.cpu_pooling import is_max_pooling, scatter_to_maxima


def cpu_forms(f: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps f so that its convolutions and gradients of max pooling are in fast forms.

    Those in nested loops, conditions and rematerialised parts too. Convolutions in groups stay as
    they are. The function that is returned must not be differentiated: its gradient would have
    other forms again.
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
        form = _fast_form(equation)
        if form:
            # What is bound anew would lose the phase of the step that it belongs to.
            with jax.named_scope(str(equation.source_info.name_stack)):
                operands = [jnp.asarray(read(x)) for x in equation.invars]  # constants too
                outputs = [form(*operands, equation.params)]
        else:
            # As a program of one equation, JAX itself knows how to run it. Operands once each: no
            # program may bind a variable twice, and x * x has one twice.
            names = list(dict.fromkeys(v for v in equation.invars if isinstance(v, core.Var)))
            alone = jaxpr.replace(
                constvars=[],
                invars=names,
                outvars=equation.outvars,
                eqns=[equation.replace(params=_fast_parameters(equation.params))],
                effects=equation.effects,
            )
            outputs = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*map(read, names))
        values.update(zip(equation.outvars, outputs))
    return [read(atom) for atom in jaxpr.outvars]


def _fast_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Transforms the parameters of an equation: the functions among them, whatever it is."""

    def in_fast_forms(value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr):
            return _in_fast_forms(value)
        if isinstance(value, core.Jaxpr):
            # Open ones, as of `jax.checkpoint`, have no constants: these are arguments there.
            return _in_fast_forms(core.ClosedJaxpr(value, ())).jaxpr
        if type(value) is tuple:  # of the branches of a condition
            return tuple(map(in_fast_forms, value))
        return value

    # What has none stays as it is, for tracing all functions anew would take seconds.
    if not any(map(_has_slow_form, core.jaxprs_in_params(params))):
        return dict(params)
    return {key: in_fast_forms(value) for key, value in params.items()}


def _in_fast_forms(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Traces a traced function anew, in fast forms."""
    inputs = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in closed.in_avals
    ]
    return jax.make_jaxpr(lambda *args: _evaluate(closed, list(args)))(*inputs)


def _has_slow_form(jaxpr: core.Jaxpr) -> bool:
    """Tells whether a traced function has anything to transform, at any depth."""
    return any(
        _fast_form(equation) is not None
        or any(map(_has_slow_form, core.jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def _fast_form(equation: core.JaxprEqn) -> Callable[..., jax.Array] | None:
    """Finds what takes the place of an equation: (its operands, its parameters) -> its result."""
    if is_max_pooling(equation):
        return scatter_to_maxima
    groups = ("feature_group_count", "batch_group_count")
    if equation.primitive is not lax.conv_general_dilated_p:
        return None
    return convolve if all(equation.params[key] == 1 for key in groups) else None
