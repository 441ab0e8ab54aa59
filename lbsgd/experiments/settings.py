"""What a sweep says besides its rows: seeds, tuning, and what a report shows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lbsgd.run.config import KEYS, check_is_key
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import is_number, short_repr

# (least, most, "linear" or "log")
Range = tuple[float, float, str]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Says how often the rows of a sweep are run, how they are tuned, and what a report shows.

    Attributes:
      seeds: how many runs each row has; their seeds are 0, 1, ...
      seeds_at_once: how many of them are trained in one compiled step; 0 measures what is fastest.
      tune: by key of the config, the range it is tuned in: (least, most, "linear" or "log").
      tune_points: how many points are tried for each row, where anything is tuned.
      tune_metric: a metric of evaluations that the best point is chosen by, as `val_loss`; "" for
        the headline of the task.
      columns: keys of the config that the table shows for each row.
      metric: a metric of evaluations that the report is about, as `val_error_top5`; "" for the
        headline of the task.
      baseline: the row that others are compared with; "" for the first.
      overlays: rows whose curves are laid over each other, a picture for each tuple; () lays each
        row over the baseline.
      against: a key of the config that the metric is drawn against, with error bars; "" for none.
    """

    seeds: int = 5
    seeds_at_once: int = 1
    tune: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    tune_points: int = 16
    tune_metric: str = ""
    columns: tuple[str, ...] = ()
    metric: str = ""
    baseline: str = ""
    overlays: tuple[tuple[str, ...], ...] = ()
    against: str = ""


def check_settings(settings: Settings) -> None:
    """Checks all that can be checked without the rows.

    Raises:
      ConfigError: a number, a key or a range is wrong.
    """
    for name, least in (("seeds", 1), ("seeds_at_once", 0), ("tune_points", 1)):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(
                f"Settings: {name} must be a whole number from {least} on, not {short_repr(value)}"
            )
    if isinstance(settings.columns, str) or isinstance(settings.overlays, str):
        raise ConfigError(
            "Settings: columns and overlays are tuples, as in columns=('batch_size',)"
        )
    for key in filter(None, [*settings.columns, *settings.tune, settings.against]):
        check_is_key(key)
    for key, range_ in settings.tune.items():
        _check_range(key, range_)


def _check_range(key: str, range_: Any) -> None:
    """Raises ConfigError where a key cannot be tuned in a range."""
    kind = type(KEYS[key].default)
    if kind not in (int, float) or key == "seed":
        raise ConfigError(f"Settings: {key} is {kind.__name__}, and only numbers can be tuned")
    if not (isinstance(range_, (tuple, list)) and len(range_) == 3):
        raise ConfigError(
            f"Settings: {key} must be tuned in (least, most, 'linear' or 'log'), not "
            f"{short_repr(range_)}"
        )
    least, most, scale = range_
    if not (is_number(least) and is_number(most) and least < most):
        raise ConfigError(f"Settings: the range of {key} must rise, not {short_repr(range_)}")
    if scale not in ("linear", "log"):
        raise ConfigError(f"Settings: {key} is tuned 'linear' or 'log', not {short_repr(scale)}")
    if scale == "log" and least <= 0:
        raise ConfigError(
            f"Settings: on a log scale {key} must be above 0, not {short_repr(least)}"
        )
