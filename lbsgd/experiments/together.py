"""Trains runs that are alike but for their seeds in one compiled step."""

from collections.abc import Callable, Mapping, Sequence

import ml_collections

from lbsgd.run.record.result import Outcome


def run_together(
    configs: Sequence[ml_collections.ConfigDict],
    workdirs: Sequence[str],
    should_stop: Callable[[int], bool],
    on_metrics: Callable[[int, int, Mapping[str, float]], None],
) -> list[Outcome | Exception]:
    """Trains the runs, each in its own workdir."""
    raise NotImplementedError
