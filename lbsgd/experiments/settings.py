"""What a sweep says besides its rows: seeds, tuning, and what a report shows."""

import dataclasses
import difflib
import math
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

    def __new__(cls, *values: Any, **fields: Any) -> "Settings":
        """Checks the names of fields, before Python says of one that it was unexpected.

        Raises:
          ConfigError: one is unknown.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields.keys() - known:
            (near,) = difflib.get_close_matches(name, known, 1, 0.0)
            raise ConfigError(f"Settings has no field {name!r}; the nearest is {near!r}")
        return super().__new__(cls)


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
    if any(isinstance(names, str) for names in (settings.columns, *settings.overlays)):
        raise ConfigError(
            "Settings: columns is a tuple of keys, and overlays one of tuples of rows, as in "
            "columns=('batch_size',), overlays=(('kn=32', 'kn=256'),)"
        )
    if not isinstance(settings.tune, Mapping):
        raise ConfigError(
            "Settings: tune is a dict of ranges by key, as in "
            "tune={'optimizer.weight_decay': (1e-5, 1e-3, 'log')}"
        )
    for key in filter(None, [*settings.columns, *settings.tune, settings.against]):
        check_is_key(key)
    for key, range_ in settings.tune.items():
        _check_range(key, range_)
    against = settings.against
    if against in KEYS and type(KEYS[against].default) not in (int, float):
        raise ConfigError(f"Settings: against={against!r} is no number to draw anything against")


def plain(value: Any) -> Any:
    """Makes Python's own numbers of numpy's, also within tuples, lists and dicts."""
    if isinstance(value, Mapping):
        return {name: plain(inside) for name, inside in value.items()}
    if isinstance(value, (list, tuple)):
        inside = [plain(each) for each in value]
        return inside if isinstance(value, list) else tuple(inside)
    # Told by what they can do, for reading a sweep needs no numpy.
    return value.item() if getattr(value, "shape", None) == () else value


def _check_range(key: str, range_: Any) -> None:
    """Raises ConfigError where a key cannot be tuned in a range."""
    # What stands within options has no type of its own.
    kind = type(KEYS[key].default) if key in KEYS else dict
    if kind not in (int, float) or key == "seed":
        raise ConfigError(f"Settings: {key} cannot be tuned; only keys that are numbers can")
    if not (isinstance(range_, (tuple, list)) and len(range_) == 3):
        raise ConfigError(
            f"Settings: {key} must be tuned in (least, most, 'linear' or 'log'), not "
            f"{short_repr(range_)}"
        )
    least, most, scale = range_
    if not (is_number(least) and is_number(most) and -math.inf < least < most < math.inf):
        raise ConfigError(
            f"Settings: the range of {key} must rise and be finite, not {short_repr(range_)}"
        )
    if scale not in ("linear", "log"):
        raise ConfigError(f"Settings: {key} is tuned 'linear' or 'log', not {short_repr(scale)}")
    if scale == "log" and least <= 0:
        raise ConfigError(
            f"Settings: on a log scale {key} must be above 0, not {short_repr(least)}"
        )
