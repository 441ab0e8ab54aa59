"""The order of examples: a permutation each epoch, without state, and as random as it says.

Statistical tests have fixed seeds, and fail a good generator once in 1 / `TINY` choices of seeds.
"""

import itertools

import numpy as np
import pytest
from scipy import stats

from lbsgd.data.order import MAX_EXAMPLES, Order, random_below, uniform

IMAGENET = 1_281_167
TINY = 1e-6
SIZES = [255, 256, 257, 1000, 1437, 4095, 4096, 4097, 50_000, 65_535, 65_536, 65_537]


def epoch_order(num_examples: int, seed: int, epoch: int = 0) -> np.ndarray:
    positions = np.arange(epoch * num_examples, (epoch + 1) * num_examples)
    return Order(num_examples, seed)(positions)[1]


def assert_uniform(counts: np.ndarray, tests: int = 1) -> None:
    """Pearson's chi-square along the last axis; `tests` of them share the chance of a mishap."""
    expected = counts.sum(-1, keepdims=True) / counts.shape[-1]
    assert expected.min() >= 10, "too few counts for the chi-square distribution to hold"
    statistic = ((counts - expected) ** 2 / expected).sum(-1)
    assert np.max(statistic) < stats.chi2.isf(TINY / tests, counts.shape[-1] - 1)


def assert_each_once(num_examples: int, epochs: int) -> None:
    positions = np.arange(epochs * num_examples)
    when, examples = Order(num_examples, seed=3)(positions)
    assert (when == positions // num_examples).all()
    for epoch in range(epochs):
        in_epoch = examples[when == epoch]
        assert (np.sort(in_epoch) == np.arange(num_examples)).all()


@pytest.mark.parametrize("tens", range(20))
def test_every_small_set_has_each_example_once_an_epoch(tens):
    for num_examples in range(10 * tens + 1, 10 * tens + 11):
        assert_each_once(num_examples, epochs=3)


@pytest.mark.parametrize("num_examples", SIZES)
def test_each_example_is_once_in_each_epoch(num_examples):
    assert_each_once(num_examples, epochs=3)


def test_imagenet_has_each_example_once():
    assert_each_once(IMAGENET, epochs=1)


@pytest.mark.parametrize("num_examples", [50, 64, 100, 1437])
def test_no_two_epochs_of_any_seeds_are_alike(num_examples):
    """Of 100 seeds x 2 epochs; seed s in epoch 1 is not seed s+1 in epoch 0 in particular."""
    orders = {
        epoch_order(num_examples, seed, epoch).tobytes() for seed in range(100) for epoch in (0, 1)
    }
    assert len(orders) == 200


@pytest.mark.parametrize(
    ("seeds_on", "epochs_on"),
    [(0, 1), (1, 0), (1, 1), (1, -1)],
    ids=["next epoch", "next seed", "same difference", "same sum"],
)
def test_orders_agree_no_more_than_by_chance(seeds_on, epochs_on):
    """Two random permutations agree at Poisson(1) places, so 300 pairs at Poisson(300)."""
    agreements = sum(
        np.sum(epoch_order(100, seed, 1) == epoch_order(100, seed + seeds_on, 1 + epochs_on))
        for seed in range(300)
    )
    low, high = stats.poisson.interval(1 - TINY, 300)
    assert low <= agreements <= high


def test_purposes_have_orders_of_their_own():
    positions = np.arange(1437)
    train, precise = (Order(1437, 0, p)(positions)[1] for p in ("train", "precise_batch_norm"))
    low, high = stats.poisson.interval(1 - TINY, 1)
    assert low <= np.sum(train == precise) <= high


@pytest.mark.parametrize("num_examples", [1, 7, 1437])
def test_any_part_in_any_sequence_gives_the_same(num_examples):
    """So a process that holds a part of the rows sees what it would see holding all."""
    order = Order(num_examples, seed=5)
    positions = np.arange(3 * num_examples + 2)
    whole = np.stack(order(positions))
    shuffled = np.random.default_rng(0).permutation(positions)
    assert (np.stack(order(shuffled)) == whole[:, shuffled]).all()
    for parts in (2, 3, 32):
        for part in np.array_split(shuffled, parts):
            assert (np.stack(order(part)) == whole[:, part]).all()
        strided = np.stack(order(positions[1::parts]))
        assert (strided == whole[:, 1::parts]).all()
    assert np.stack(Order(num_examples, seed=5)(positions)).tolist() == whole.tolist()


@pytest.mark.parametrize("shape", [(), (0,), (24,), (2, 3, 4), (24, 1)])
def test_shape_and_type_of_the_answer(shape):
    positions = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    epochs, examples = Order(10, seed=0)(positions)
    assert epochs.shape == examples.shape == shape
    assert epochs.dtype == examples.dtype == np.int64
    flat = Order(10, seed=0)(positions.ravel())
    assert (epochs.ravel() == flat[0]).all()
    assert (examples.ravel() == flat[1]).all()


@pytest.mark.parametrize("num_examples", [1, 1000, 1437])
def test_a_far_position_needs_none_before_it(num_examples):
    position = 10**12
    epoch, index = divmod(position, num_examples)
    when, example = Order(num_examples, seed=0)(np.array([position]))
    assert when.tolist() == [epoch]
    assert example[0] == epoch_order(num_examples, 0, epoch)[index]


@pytest.mark.parametrize("num_examples", [2**32, 2**40 + 1, MAX_EXAMPLES])
def test_huge_sets_map_one_to_one(num_examples):
    """Neighbours at both ends go to places of their own within the set."""
    positions = np.concatenate([np.arange(500), np.arange(num_examples - 500, num_examples)])
    epochs, examples = Order(num_examples, seed=0)(positions)
    assert (epochs == 0).all()
    assert ((examples >= 0) & (examples < num_examples)).all()
    assert len(np.unique(examples)) == 1000


@pytest.mark.parametrize(
    ("num_examples", "seeds"), [(4, 2400), pytest.param(5, 4800, marks=pytest.mark.long)]
)
def test_every_permutation_is_equally_likely(num_examples, seeds):
    permutations = list(itertools.permutations(range(num_examples)))
    number = {permutation: i for i, permutation in enumerate(permutations)}
    seen = [number[tuple(epoch_order(num_examples, seed).tolist())] for seed in range(seeds)]
    assert_uniform(np.bincount(seen, minlength=len(permutations)))


def is_odd(permutation: np.ndarray) -> bool:
    """Whether the number of pairs in the wrong order is odd."""
    later_is_less = permutation[:, None] > permutation[None, :]
    return bool(np.triu(later_is_less).sum() % 2)


@pytest.mark.parametrize("num_examples", [*range(2, 10), 15, 24, 25, 49])
def test_odd_and_even_permutations_are_equally_likely(num_examples):
    """A property of the whole order, which the places of single examples do not show."""
    seeds = 400
    odd = sum(is_odd(epoch_order(num_examples, seed)) for seed in range(seeds))
    low, high = stats.binom.interval(1 - TINY, seeds, 0.5)
    assert low <= odd <= high


@pytest.mark.parametrize("num_examples", [10, 50, 101])
def test_every_example_is_equally_likely_at_every_position(num_examples):
    """Over seeds: counts by [position, example], tested along both axes."""
    counts = np.zeros((num_examples, num_examples), int)
    for seed in range(20 * num_examples):
        counts[np.arange(num_examples), epoch_order(num_examples, seed)] += 1
    assert_uniform(counts, tests=2 * num_examples)
    assert_uniform(counts.T, tests=2 * num_examples)


def test_every_example_is_equally_likely_over_epochs():
    """The same over the epochs of one seed."""
    counts = np.zeros((10, 10), int)
    for epoch in range(400):
        counts[np.arange(10), epoch_order(10, 0, epoch)] += 1
    assert_uniform(counts, tests=20)
    assert_uniform(counts.T, tests=20)


def test_neighbours_are_equally_likely_to_be_any_distance_apart():
    """The step from one example to the next, modulo N, is anything but 0."""
    num_examples = 101
    orders = np.stack([epoch_order(num_examples, seed) for seed in range(100)])
    steps = np.diff(orders, axis=1) % num_examples
    assert_uniform(np.bincount(steps.ravel(), minlength=num_examples)[1:])


@pytest.mark.parametrize("bound", [1, 2, 3, 9, 100])
def test_random_numbers_are_uniform_over_examples(bound):
    examples = np.arange(100 * bound)
    values = random_below(bound, 0, "test", np.zeros_like(examples), examples)
    assert values.dtype == np.int64
    counts = np.bincount(values, minlength=bound)
    assert len(counts) == bound
    if bound > 1:
        assert_uniform(counts)


@pytest.mark.parametrize("bound", [2, 9])
def test_random_numbers_of_one_example_are_uniform_over_epochs(bound):
    epochs = np.arange(100 * bound)
    values = random_below(bound, 0, "test", epochs, np.full_like(epochs, 17))
    assert_uniform(np.bincount(values, minlength=bound))


@pytest.mark.parametrize("bound", [2, 9])
def test_random_numbers_of_one_example_are_uniform_over_seeds(bound):
    zero, example = np.array([0]), np.array([17])
    values = [random_below(bound, s, "test", zero, example)[0] for s in range(100 * bound)]
    assert_uniform(np.bincount(values, minlength=bound))


@pytest.mark.parametrize(
    ("seed", "purpose", "epoch"),
    [(1, "test", 0), (0, "other", 0), (0, "test", 1)],
    ids=["seed", "purpose", "epoch"],
)
def test_random_numbers_are_independent_of_those_for_another(seed, purpose, epoch):
    """Pairs of numbers below 7: all 49 equally likely."""
    examples = np.arange(4900)
    first = random_below(7, 0, "test", np.zeros_like(examples), examples)
    second = random_below(7, seed, purpose, np.full_like(examples, epoch), examples)
    assert_uniform(np.bincount(7 * first + second, minlength=49))


def test_random_numbers_do_not_depend_on_the_batch():
    random = np.random.default_rng(0)
    epochs, examples = random.integers(0, 4, 200), random.integers(0, 1000, 200)
    whole = random_below(1000, 3, "test", epochs, examples)
    alone = [random_below(1000, 3, "test", e[None], x[None])[0] for e, x in zip(epochs, examples)]
    assert whole.tolist() == alone
    shaped = random_below(1000, 3, "test", epochs.reshape(4, 50), examples.reshape(4, 50))
    assert shaped.ravel().tolist() == alone


def test_random_numbers_reach_the_largest_bound():
    examples = np.arange(1000)
    values = random_below(2**32, 0, "test", np.zeros_like(examples), examples)
    assert values.min() >= 0
    assert values.max() < 2**32
    # P(all 1000 below the bound) = (bound / 2^32)^1000 = TINY.
    assert values.max() >= 2**32 * TINY ** (1 / 1000)


@pytest.mark.parametrize("over", ["examples", "epochs", "seeds"])
def test_uniform_numbers_are_uniform(over):
    """Each of three columns, over whatever varies."""
    index, fixed = np.arange(2000), np.full(2000, 17)
    if over == "examples":
        values = uniform(0, "test", fixed, index, 3)
    elif over == "epochs":
        values = uniform(0, "test", index, fixed, 3)
    else:
        values = np.stack([uniform(s, "test", fixed[:1], fixed[:1], 3)[0] for s in index])
    for column in values.T:
        assert stats.kstest(column, stats.uniform.cdf).pvalue > TINY


def test_uniform_numbers_have_53_random_bits():
    """They are below 1, and their lowest byte is as uniform as the others."""
    examples = np.arange(256 * 40)
    values = uniform(0, "test", np.zeros_like(examples), examples, 2)
    assert values.dtype == np.float64
    assert values.min() >= 0
    assert values.max() < 1
    whole = values * 2.0**53
    assert (whole == np.floor(whole)).all()
    for shift in range(0, 53, 8):
        part = (whole.astype(np.int64) >> shift) % min(256, 2 ** (53 - shift))
        for column in part.T:
            assert_uniform(np.bincount(column, minlength=min(256, 2 ** (53 - shift))))


@pytest.mark.parametrize(
    ("seed", "purpose", "epoch", "example", "column"),
    [
        pytest.param(0, "test", 0, 0, 1, id="column"),
        pytest.param(1, "test", 0, 0, 0, id="seed"),
        pytest.param(0, "other", 0, 0, 0, id="purpose"),
        pytest.param(0, "test", 1, 0, 0, id="epoch"),
        pytest.param(0, "test", 0, 1, 0, id="next example"),
        pytest.param(0, "test", 1, 1, 1, id="next of all"),
        pytest.param(1, "test", 1, -1, 0, id="same sum"),
    ],
)
def test_uniform_numbers_are_independent_of_those_for_another(
    seed, purpose, epoch, example, column
):
    """Pairs of sevenths: all 49 equally likely."""
    examples = np.arange(1, 4901)
    zero = np.zeros_like(examples)
    first = uniform(0, "test", zero, examples, 2)[:, 0]
    second = uniform(seed, purpose, zero + epoch, examples + example, 2)[:, column]
    pairs = 7 * np.floor(7 * first) + np.floor(7 * second)
    assert_uniform(np.bincount(pairs.astype(int), minlength=49))


def test_uniform_numbers_do_not_depend_on_the_batch():
    random = np.random.default_rng(0)
    epochs, examples = random.integers(0, 4, 60), random.integers(0, 1000, 60)
    whole = uniform(3, "test", epochs, examples, 5)
    assert whole.shape == (60, 5)
    alone = [uniform(3, "test", e[None], x[None], 5)[0] for e, x in zip(epochs, examples)]
    np.testing.assert_array_equal(whole, alone)
    shaped = uniform(3, "test", epochs.reshape(4, 15), examples.reshape(4, 15), 5)
    np.testing.assert_array_equal(shaped, whole.reshape(4, 15, 5))


@pytest.mark.parametrize("num_examples", [0, -1, MAX_EXAMPLES + 1])
def test_sizes_out_of_range_are_errors(num_examples):
    with pytest.raises(ValueError, match=f"not {num_examples}$"):
        Order(num_examples, seed=0)
