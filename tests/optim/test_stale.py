"""The intervals of statistics against Algorithm 2 by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.optim import stale

UPDATES = 60


def simulated(values, alpha):
    """Algorithm 2 of one statistic: the updates it is refreshed at."""
    x1, x2, d1, d2, at, refreshes = None, None, 1, 1, 0, []
    for t, x in enumerate(values):
        if t != at:
            continue
        refreshes.append(t)

        def similar(y, x=x):
            return y is not None and np.linalg.norm(x - y) / np.linalg.norm(y) < alpha

        if not similar(x1):
            d = max(1, d1 // 2)
        elif not similar(x2):
            d = d1
        else:
            d = d1 + d2
        x1, x2, d1, d2, at = x, x1, d, d1, t + d
    return refreshes


def recorded(seed):
    """Statistics that change much at first, then little, and much again by and by."""
    random = np.random.default_rng(seed)
    size = np.where(np.arange(UPDATES) < 10, 0.5, 0.005)
    size[np.random.default_rng(seed + 100).integers(20, UPDATES, 3)] = 0.6
    steps = random.normal(size=(UPDATES, 4, 4)) * size[:, None, None]
    return np.cumsum(np.concatenate([np.eye(4)[None], steps]), axis=0)[:UPDATES]


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3])
def test_intervals_are_those_of_algorithm_2(alpha):
    values = [recorded(seed) for seed in range(3)]
    last, before = (np.zeros((3, 4, 4)) for _ in range(2))
    intervals, found = stale.first_intervals(3), [[] for _ in values]

    def squares(x):
        return jnp.asarray(np.sum(np.square(x), axis=(1, 2)))

    with jax.enable_x64():
        step = jax.jit(stale.advanced)
        for t in range(UPDATES):
            due = np.asarray(stale.is_due(intervals, jnp.int32(t)))
            for refreshes, is_due in zip(found, due):
                refreshes += [t] * bool(is_due)
            # What is not due is anything at all, as of a step that has not computed it.
            fresh = np.stack([x[t] if d else np.full((4, 4), np.nan) for x, d in zip(values, due)])
            distances = stale.Distances(
                squares(fresh - last), squares(fresh - before), squares(last), squares(before)
            )
            intervals = step(intervals, distances, jnp.int32(t), jnp.float64(alpha))
            last, before = (
                np.where(due[:, None, None], new, old)
                for new, old in ((fresh, last), (last, before))
            )
    expected = [simulated(x, alpha) for x in values]
    assert found == expected
    assert alpha == 0 or min(map(len, expected)) < UPDATES / 2
    assert alpha > 0 or all(list(range(UPDATES)) == x for x in expected)
