"""Updates/s of a small network, from the bare step to the loop of a run: a piece of gpu.py.

python gpu_loop.py JOB NETWORK PIXELS KN N DTYPE graphs|kernels

Each way has one more of what the loop does. gpu.py has the piece twice: with the kernels of an
update in CUDA graphs, as XLA launches them by default, and one by one. Where memory that a graph
was made for has moved, as that of the next minibatch, XLA has to mend the graph before it runs.
"""

import collections
import itertools
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import step
from gpu_job import check_backend, given
from gpu_step import case_of

from lbsgd.system.devices import IN_FLIGHT

SECONDS, MOST_UPDATES, BATCHES = 2.0, 200, 6  # our_step has 1000 updates


class Ways:
    """The ways to make updates, each a generator that yields once an update is on its way."""

    def __init__(self, case) -> None:
        parts, self._step, self._state, self._batch = step.our_step(*case)
        self._feed, self._numbers = parts.feed, parts.program.numbers
        rows = {key: np.asarray(x) for key, x in self._batch.items()}
        put = jax.device_put
        self._batches = [
            {key: put(x, self._batch[key].sharding) for key, x in rows.items()}
            for _ in range(BATCHES)
        ]
        self._waiting = collections.deque()

    def one_batch(self) -> Iterator[None]:
        """The step again and again, as benchmarks/step.py measures it."""
        yield from self._updates(itertools.repeat(self._batch))

    def batches_in_turn(self) -> Iterator[None]:
        """Minibatches that lie in different places of the device's memory."""
        yield from self._updates(itertools.cycle(self._batches))

    def metrics_fetched(self) -> Iterator[None]:
        """And the metrics come to the host some updates later."""
        for _ in self._updates(itertools.cycle(self._batches), keep=True):
            while len(self._waiting) > IN_FLIGHT:
                jax.device_get(self._waiting.popleft())
            yield

    def fed(self) -> Iterator[None]:
        """And the minibatches come from the feed."""
        with_feed = self._feed.training(0)
        try:
            for _ in self._updates(with_feed, keep=True):
                while len(self._waiting) > IN_FLIGHT:
                    jax.device_get(self._waiting.popleft())
                yield
        finally:
            with_feed.close()

    def _updates(self, batches, *, keep: bool = False) -> Iterator[None]:
        for update, batch in enumerate(batches):
            self._state, metrics = self._step(self._state, batch, self._numbers.at(update))
            if keep:
                self._waiting.append(metrics)
            yield

    def wait(self) -> None:
        """Waits for all updates."""
        jax.block_until_ready(self._state)
        self._waiting.clear()


def rates_of(ways: Ways, way: Callable[[], Iterator[None]], trial: bool) -> list[float]:
    """Updates/s, in three rounds after one that is not counted."""
    updates, rates = way(), []
    for number in range(2 if trial else 4):
        start, made = time.perf_counter(), 0
        while made < (2 if trial else MOST_UPDATES) and time.perf_counter() - start < SECONDS:
            next(updates)
            made += 1
        ways.wait()
        if number:
            rates.append(made / (time.perf_counter() - start))
    updates.close()
    return rates


def main() -> None:
    """Measures each way."""
    job, (*arguments, launched) = given()
    check_backend(job, jax.default_backend())
    case = case_of(arguments, job.trial)
    ways = Ways(case)
    for name in ("one_batch", "batches_in_turn", "metrics_fetched", "fed"):
        rates = rates_of(ways, getattr(ways, name), job.trial)
        what = f"{name.replace('_', ' ')}, {launched}"
        job.put(what, len(rates), case=case, updates_per_second=rates)


if __name__ == "__main__":
    main()
