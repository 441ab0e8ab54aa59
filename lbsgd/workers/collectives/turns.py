"""Puts collectives in an order that is the same on all devices, where conditions are among them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Shaped


class Turns:
    """Makes each collective wait for those before it.

    XLA on a CPU starts what waits for nothing in any order, and knows of no order between
    collectives within conditions: devices that are in two different ones wait for each other for
    ever, once their threads are used up (jaxlib 0.10.2). What depends on a result waits for it.
    """

    def __init__(self, before: Any, devices: int) -> None:
        """Begins after what a tree of arrays is computed by; one device alone waits for nothing."""
        self._over, self._alone = jnp.bool(True), devices == 1
        self.after(before)

    def after(self, results: Any) -> None:
        """Lets what comes next wait for a tree of arrays."""
        # True of any number, which the compiler does not know.
        for x in jax.tree.leaves(() if self._alone else results):
            bits = lax.population_count(x.reshape(-1)[0].astype(jnp.int32))
            self._over &= bits <= 32

    def condition(self, flag: Bool[Array, ""]) -> Bool[Array, ""]:
        """Gives a flag that waits for what is before."""
        return flag & self._over

    def value(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """Gives an array that waits for what is before."""
        return x if self._alone else jnp.where(self._over, x, jnp.zeros_like(x))
