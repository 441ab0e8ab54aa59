"""Makes natural gradients on many devices, each of which owns a part of the layers (SP-NGD).

Osawa et al. 2020, section 5: gradients and statistics are reduced to where their layers are owned
(reduce-scatter, symmetric matrices as triangles), inverted and multiplied there, and the natural
gradients come back to all (all-gather). Layers of one shape are a stack, shared out as
`lbsgd.workers.collectives.ownership` says. What is not due is left out, by conditions that are
alike on all devices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from lbsgd.models.curvature import DIAGONAL
from lbsgd.optim import kept, natural
from lbsgd.optim.kept import Curvature, Stack
from lbsgd.optim.natural import Damping
from lbsgd.optim.refresh import Refresh, Sharing
from lbsgd.workers.collectives import owned
from lbsgd.workers.collectives.exchange import Wire
from lbsgd.workers.collectives.turns import Turns


class Exchanged(NamedTuple):
    """Holds what comes of the gradients of all devices.

    Attributes:
      natural: the natural gradient, like the parameters.
      curvature: what is kept, after this update.
      norm: of the gradient itself.
    """

    natural: Any
    curvature: Any
    norm: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Preconditioner:
    """Makes natural gradients of what the devices have.

    Attributes:
      sharing: how layers are shared out.
      ruled: like the parameters that are trained, True where a layer's rule is for them.
    """

    sharing: Sharing
    ruled: Any

    def init(self, dtype: Any) -> Curvature | None:
        """Makes the state of a run's start as it is stored; None where nothing is kept."""
        return self.stored(self._nothing(dtype)) if self.sharing.threshold else None

    def _nothing(self, dtype: Any) -> Curvature:
        return kept.nothing_kept(self.sharing.stacks, self.sharing.norms, dtype)

    def specs(self) -> Any:
        """Says how the state is partitioned over devices: a tree like it."""
        if not self.sharing.threshold:
            return None
        return kept.specs(jax.eval_shape(lambda: self._nothing(jnp.float32)), self.sharing.stacks)

    def stored(self, curvature: Curvature) -> Any:
        """Gives the state the form of checkpoints, of no number of devices."""
        return kept.stored(curvature, self.sharing.stacks)

    def from_stored(self, curvature: Any) -> Any:
        """Gives what `stored` gives its form for these devices."""
        return kept.from_stored(curvature, self.sharing.stacks)

    def due(self, curvature: Curvature | None, update_index: Int[Array, ""]) -> Any:
        """Tells which statistics an update takes, by layer and key; None for all."""
        return curvature and kept.due(curvature, self.sharing.stacks, update_index)

    def __call__(
        self,
        gradient: Any,
        sums: Mapping[str, Mapping[str, Any]],
        curvature: Curvature | None,
        *,
        scales: Mapping[str, Mapping[str, float]],
        batch_size: int,
        update_index: Int[Array, ""],
        damping: ArrayLike,
        norm_damping: ArrayLike,
        after: Any = None,
    ) -> Exchanged:
        """Makes the natural gradient, within `shard_map`.

        Args:
          gradient: whose mean over devices is that of the loss; None where it is frozen.
          sums: of statistics on this device, by layer and key. Of sampled labels also, under
            `DIAGONAL`, the gradient of what no rule is for, as `gradient` has that of the loss.
          curvature: what is kept of earlier updates; of what devices own, this one's part.
          scales: what the sums of all devices are multiplied by, by layer and key.
          batch_size: kn, examples of the minibatch.
          update_index: of this update.
          damping, norm_damping: lambda, and what multiplies it for norms.
          after: what else devices exchange, arrays; it is before this.
        """
        due = self.due(curvature, update_index)
        by = Damping(damping, norm_damping)
        stacks = self.sharing.stacks
        pieces = self._gradient_pieces(gradient)
        rest = lax.pmean(self._without_stacks(gradient), self.sharing.axes)
        of_mean = lax.pmean(sums[DIAGONAL], self.sharing.axes) if DIAGONAL in sums else rest
        turns = None
        if curvature or any(stack.owner.inverts_together for stack in stacks.values()):
            before = (pieces, rest, of_mean, sums, after)
            turns = Turns(before, lax.axis_size(self.sharing.axes))
        refresh = Refresh(self.sharing, sums, scales, curvature, due, update_index, by, turns)
        last, told = refresh.factors(pieces)
        inverses = refresh.inverses(last, told)
        kept_of_norms, of_norms = refresh.of_norms()
        # kn g^2 estimates the mean of the squares of examples' own gradients.
        squares = jax.tree.map(lambda g: batch_size * jnp.square(g), of_mean)
        found = self._of_rest(rest, of_norms, squares, damping)
        for name, stack in stacks.items():
            of_stack = turns.value(pieces[name]) if turns else pieces[name]
            matrices = self._products(of_stack, stack, inverses[name])
            found = _with_matrices(found, gradient, stack, matrices)
        square = told.square + sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(rest))
        after = curvature and {**refresh.kept_factors(last, told, inverses), **kept_of_norms}
        return Exchanged(found, after, jnp.sqrt(square))

    def _gradient_pieces(self, gradient: Any) -> dict[str, jax.Array]:
        """Reduces the gradients of stacks to where they are owned: their mean over devices."""
        stacks = self.sharing.stacks
        if not stacks:
            return {}
        wire = Wire(self.sharing.axes)
        return {
            name: owned.reduce_scatter(_matrices(gradient, stack), stack.owner, wire)
            / stack.owner.devices
            for name, stack in stacks.items()
        }

    def _without_stacks(self, gradient: Any) -> Any:
        """Leaves out of a tree like the parameters what stacks have."""
        for stack in self.sharing.stacks.values():
            for layer in stack.layers:
                none = [None] * len(layer.parameters)
                gradient = natural.with_arrays(gradient, layer, none)
        return gradient

    def _products(
        self,
        pieces: Float[Array, "q w columns"],
        stack: Stack,
        inverses: Mapping[str, Float[Array, "q rows d"]],
    ) -> list[Float[Array, "long columns"]]:
        """Multiplies the gradients of a stack by what this device owns of the inverses."""
        o, wire = stack.owner, Wire(self.sharing.axes)
        whole = owned.gather_in_group(pieces, o.long, o, wire)
        others = [inverses[key] for key in stack.factors if key != stack.long]
        # Row by row of the longer factor's inverse, of which a device has w.
        product = jax.vmap(natural.multiplied)(inverses[stack.long], whole, *others)
        return owned.all_gather(product, o, wire)

    def _of_rest(
        self, rest: Any, of_norms: Mapping[str, Any], squares: Any, damping: ArrayLike
    ) -> Any:
        """Makes the natural gradient of what has no factors."""
        diagonal = jax.tree.map(
            lambda ruled, g: None if ruled or g is None else g, self.ruled, squares
        )
        found = natural.by_diagonal(rest, diagonal, damping)
        for name, layer in self.sharing.norms.items():
            arrays = natural.by_channel(natural.arrays_of(rest, layer), of_norms[name])
            found = natural.with_arrays(found, layer, arrays)
        return found


def _matrices(gradient: Any, stack: Stack) -> list[Float[Array, "long columns"]]:
    """Takes the gradients of a stack out of a tree like the parameters."""
    return [
        _long_first(stack, natural.matrix_of(layer, natural.arrays_of(gradient, layer)))
        for layer in stack.layers
    ]


def _long_first(stack: Stack, matrix: Float[Array, "a g"]) -> Float[Array, "long columns"]:
    """Turns a layer's matrix so that the longer factor multiplies it from the left, or back."""
    return matrix if stack.long == "A" else matrix.T


def _with_matrices(
    tree: Any, like: Any, stack: Stack, matrices: list[Float[Array, "long columns"]]
) -> Any:
    """Puts the matrices of a stack's layers into a tree like the parameters."""
    for layer, matrix in zip(stack.layers, matrices):
        shapes = natural.arrays_of(like, layer)
        arrays = natural.arrays_of_matrix(layer, _long_first(stack, matrix), shapes)
        tree = natural.with_arrays(tree, layer, arrays)
    return tree
