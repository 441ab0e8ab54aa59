"""Counts how few updates of 1,024 digits each optimizer needs: SP-NGD, LARS and Nesterov momentum.

    lbsgd sweep run digits_updates:spngd --workdir runs/digits_updates_spngd --parallel 2

(the default), and so with `:lars` and `:nesterov`. Rows are lengths, of 16 to 126 updates, which
are 11 to 90 epochs. Each row is tuned with the same effort: 8 rates, from a quarter of that of
configs/digits_spngd.py, digits_lars.py and digits_nesterov.py to four times it, one run each; then
it is run with the best of them and the seeds 0 to 4. Warmup, where there is one, is a sixth of the
length.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.run.recipes import sibling
from lbsgd.system.errors import ConfigError

_CONFIGS = str(pathlib.Path(__file__).parent)
OPTIMIZERS = ("spngd", "lars", "nesterov")
UPDATES = (126, 63, 32, 16)
POINTS, WITHIN = 8, 4


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the recipe of an optimizer, whose lengths the rows are."""
    arg = arg or OPTIMIZERS[0]
    if arg not in OPTIMIZERS:
        raise ConfigError(f"no variant {arg!r}; there are spngd, lars and nesterov")
    return sibling(_CONFIGS, f"digits_{arg}")


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields lengths."""
    warmup = get_config(arg).learning_rate.warmup != "none"
    for updates in UPDATES:
        keys: dict[str, Any] = {"total_epochs": 0.0, "total_steps": updates}
        if warmup:
            keys |= {
                "learning_rate.warmup_epochs": 0.0,
                "learning_rate.warmup_steps": round(updates / 6),
            }
        yield f"{updates} updates", keys


def settings(arg: str = "") -> Settings:
    """Tunes the rate."""
    rate = get_config(arg).learning_rate.reference_learning_rate
    return Settings(
        tune={"learning_rate.reference_learning_rate": (rate / WITHIN, rate * WITHIN, "log")},
        tune_points=POINTS,
        columns=("total_steps",),
    )
