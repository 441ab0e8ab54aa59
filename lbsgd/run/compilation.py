"""The compiled step of each batch size, compiled before it is needed."""

import concurrent.futures
from typing import Any

from lbsgd.run.build import Run


class CompiledSteps:
    """One compilation for each batch size, in a thread of its own and in the order of their need.

    So while a run trains with its first size, the steps of the others are made.
    """

    def __init__(self, parts: Run, start: int) -> None:
        """Starts to compile what the updates from `start` on need."""
        self._size_of = parts.timeline.batch_size
        needed = parts.timeline.sizes_between(start, parts.total_updates)
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "lbsgd-compile")
        self._steps = {
            size: self._pool.submit(parts.compile_train_step, parts.placements[size])
            for size in needed
        }

    def __call__(self, update: int) -> Any:
        """The step of update `update`, once it is compiled."""
        return self._steps[self._size_of(update)].result()

    def close(self) -> None:
        """Ends the compiling after the one it is at."""
        self._pool.shutdown(wait=False, cancel_futures=True)
