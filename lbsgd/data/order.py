"""The order of examples: global position -> (epoch, example), one random permutation per epoch.

Position p of the stream of examples belongs to epoch p // N. Within an epoch the examples come in
the order of a keyed permutation of {0..N-1}. It is a closed form, computed only for the positions
that are asked for, and needs no memory and no state: any process can compute any part of any epoch
at once, so a resumed run, or one with other processes, needs nothing but the update index.

The permutation is a Feistel network over pairs (left, right) of Z_a x Z_b with a*b just above N:
each round adds a hash of one half to the other, which can be undone and is therefore a permutation
of the a*b pairs. A pair outside {0..N-1} is permuted again until it is inside (cycle walking: Black
and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). a*b < N + 3 sqrt(N) + 3, so few pairs
are outside.

A `ShardOrder` is what many loaders have instead, and Remark 4 of Goyal et al. warns of: the set is
split once among the workers, and each permutes its own part every epoch.
"""

import dataclasses
import functools
import hashlib
import math

import numpy as np

# Each half of a pair must stay below 2^32, because `_below` multiplies it within 64 bits.
MAX_EXAMPLES = 2**62
# With fewer rounds the permutations of very small sets (a, b of 2 or 3) are measurably not
# equally likely.
_ROUNDS = 24


@functools.lru_cache(maxsize=1024)
def round_keys(seed: int, epoch: int, purpose: str, count: int = _ROUNDS) -> np.ndarray:
    """Derives `count` independent uint64 keys from (seed, epoch, purpose).

    They come from a cryptographic hash, so seeds and epochs that are close, or have the same sum,
    have nothing in common.
    """
    text = f"{seed}/{epoch}/{purpose}".encode()
    stream = hashlib.shake_256(text).digest(8 * count)
    keys = np.frombuffer(stream, "<u8").astype(np.uint64)
    keys.flags.writeable = False  # one array serves all callers
    return keys


def _mix(bits: np.ndarray) -> np.ndarray:
    """Scrambles uint64 bijectively: every output bit depends on every input bit (MurmurHash3)."""
    bits = bits ^ (bits >> np.uint64(33))
    bits = bits * np.uint64(0xFF51AFD7ED558CCD)
    bits = bits ^ (bits >> np.uint64(33))
    bits = bits * np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))


def _below(bits: np.ndarray, bound: int) -> np.ndarray:
    """Maps uint64 bits to {0..bound-1} by their upper half, for bound <= 2^32."""
    return ((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)


def _add(value: np.ndarray, bits: np.ndarray, bound: int) -> np.ndarray:
    """Adds a hash modulo `bound`, without the slow integer division."""
    total = value + _below(bits, bound)
    return np.where(total >= bound, total - np.uint64(bound), total)


def _encipher(index: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    """Runs all rounds of the Feistel network over {0..rows*columns-1}."""
    left, right = np.divmod(index, np.uint64(columns))
    for key_left, key_right in keys.reshape(-1, 2, *keys.shape[1:]):
        left = _add(left, _mix(right + key_left), rows)
        right = _add(right, _mix(left + key_right), columns)
    return left * np.uint64(columns) + right


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Permutes `index` (uint64, each below `size`) by the keyed permutation of {0..size-1}.

    Args:
      keys: of the rounds, `[rounds]`; or `[rounds, N]`, a permutation of its own for each of
        `index`, `[N]`.
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    # Over an odd number of pairs every round is an even permutation, so that half of all
    # permutations could not occur.
    columns += rows * columns % 2
    image = _encipher(index, rows, columns, keys)
    outside = np.flatnonzero(image >= size)
    while outside.size:
        image[outside] = _encipher(image[outside], rows, columns, _of(keys, outside))
        outside = outside[image[outside] >= size]
    return image


def _of(keys: np.ndarray, some: np.ndarray) -> np.ndarray:
    return keys[:, some] if keys.ndim > 1 else keys


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which a run sees the examples of a data set.

    Attributes:
      num_examples: N, the size of the data set.
      seed: the seed of the run.
      purpose: gives orders of one seed different keys ("train", "precise_batch_norm").
    """

    num_examples: int
    seed: int
    purpose: str = "train"

    def __post_init__(self) -> None:
        if not 0 < self.num_examples <= MAX_EXAMPLES:
            raise ValueError(f"an order needs 1 to 2^62 examples, not {self.num_examples}")

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epoch and the example at each position of the stream.

        Args:
          positions: integers >= 0, any shape.

        Returns:
          epochs, examples: int64, of the same shape; each example occurs once in every epoch.
        """
        positions = np.asarray(positions, np.int64)
        epochs, indices = np.divmod(positions, self.num_examples)
        examples = np.empty_like(indices)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            keys = round_keys(self.seed, int(epoch), self.purpose)
            examples[here] = permute(indices[here].astype(np.uint64), self.num_examples, keys)
        return epochs, examples


@dataclasses.dataclass(frozen=True)
class ShardOrder:
    """The order in which k workers see the examples that were split among them once and for all.

    A random permutation, the same for all epochs, is cut into k shards; the first N mod k have an
    example more than the others. Worker j takes rows jn..jn+n-1 of every minibatch, and goes
    through shard j in a random order, which is another one each time it is through. So every
    example of a shard comes once before any of them comes again. Where k does not divide N, workers
    with fewer examples begin their next epoch sooner.

    Attributes:
      num_examples: N, the size of the data set.
      seed: the seed of the run.
      workers: k, at most N.
      worker_batch_size: n.
      purpose: as in `Order`.
    """

    num_examples: int
    seed: int
    workers: int
    worker_batch_size: int
    purpose: str = "train"

    def __post_init__(self) -> None:
        if not 0 < self.workers <= self.num_examples <= MAX_EXAMPLES:
            raise ValueError(f"{self.num_examples} examples make no {self.workers} shards")

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epoch of its worker, and the example, at each position of the stream.

        Args:
          positions: integers >= 0, any shape.

        Returns:
          epochs, examples: int64, of the same shape.
        """
        positions = np.asarray(positions, np.int64)
        flat = positions.ravel()
        minibatches, rows = np.divmod(flat, self.workers * self.worker_batch_size)
        workers, row = np.divmod(rows, self.worker_batch_size)
        least, longer = divmod(self.num_examples, self.workers)
        sizes = least + (workers < longer)
        epochs, index = np.divmod(minibatches * self.worker_batch_size + row, sizes)
        within = self._within(workers, epochs, index, sizes)
        cut = (workers * least + np.minimum(workers, longer) + within).astype(np.uint64)
        keys = round_keys(self.seed, 0, f"{self.purpose}/shards")
        examples = permute(cut, self.num_examples, keys).astype(np.int64)
        return epochs.reshape(positions.shape), examples.reshape(positions.shape)

    def _within(
        self, workers: np.ndarray, epochs: np.ndarray, index: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Permutes indices within shards, all arguments `[N]`."""
        keys = np.moveaxis(
            _random_bits(_ROUNDS, self.seed, f"{self.purpose}/shard", epochs, workers), -1, 0
        )
        permuted = np.empty_like(index)
        for size in np.unique(sizes):
            here = np.flatnonzero(sizes == size)
            permuted[here] = permute(index[here].astype(np.uint64), int(size), keys[:, here])
        return permuted


def _random_bits(
    count: int, seed: int, purpose: str, epochs: np.ndarray, examples: np.ndarray
) -> np.ndarray:
    """Draws `count` uint64 for each (epoch, example), as functions of these: `[..., count]`."""
    bits = np.repeat(np.asarray(examples).astype(np.uint64)[..., None], count, axis=-1)
    for epoch in np.unique(epochs):
        keys = round_keys(seed, int(epoch), purpose, 2 * count).reshape(count, 2)
        here = epochs == epoch
        bits[here] = _mix(_mix(bits[here] + keys[:, 0]) ^ keys[:, 1])
    return bits


def random_below(
    bound: int, seed: int, purpose: str, epochs: np.ndarray, examples: np.ndarray
) -> np.ndarray:
    """Draws a random integer in {0..bound-1} for each (epoch, example), for its augmentation.

    It depends on nothing else, so an example is augmented in the same way wherever it is loaded.

    Args:
      bound: at most 2^32.
      epochs, examples: integers of one shape.

    Returns:
      int64 of that shape.

    Raises:
      ValueError: the bound is too large.
    """
    if not 0 < bound <= 2**32:
        raise ValueError(f"bound must be 1 to 2^32, not {bound}")
    bits = _random_bits(1, seed, purpose, epochs, examples)[..., 0]
    return _below(bits, bound).astype(np.int64)


def uniform(
    seed: int, purpose: str, epochs: np.ndarray, examples: np.ndarray, count: int
) -> np.ndarray:
    """Draws `count` independent uniform numbers in [0, 1) for each (epoch, example).

    They are keyed like those of `random_below`.

    Args:
      epochs, examples: integers of one shape.

    Returns:
      float64 `[..., count]`, multiples of 2^-53.
    """
    bits = _random_bits(count, seed, purpose, epochs, examples)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
