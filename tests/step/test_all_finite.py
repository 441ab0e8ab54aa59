"""Checks the flag that all numbers are finite, and what it costs in a compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.step.train_step import all_finite


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("leaf", [0, 1])
def test_one_number_that_is_not_finite_is_enough(wrong, leaf):
    trees = [np.zeros(()), np.zeros((3, 2))]
    assert bool(all_finite(trees))
    trees[leaf][(-1,) * trees[leaf].ndim] = wrong
    assert not bool(all_finite(trees))


def test_squares_that_overflow_are_of_finite_numbers():
    assert bool(all_finite([jnp.full(4, 3e38, jnp.float32)]))


def test_a_program_that_decides_by_it_grows_with_the_arrays_and_not_with_their_square():
    """Each array has one flag, joined once to the others: not once more for each array decided."""

    def decide(new, old):
        finite = all_finite(new)
        return [jnp.where(finite, a, b) for a, b in zip(new, old)]

    for arrays in (20, 60):
        given = [jnp.ones(16)] * arrays
        text = jax.jit(decide).lower(given, given).compile().as_text()
        assert 0 < text.count(" and(") < 3 * arrays
