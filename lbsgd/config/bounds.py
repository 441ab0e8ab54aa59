"""How large the values of a config may be, and how one is shown within a line."""

import math
import unicodedata
from typing import Any

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import _is_number, short_repr

# Far more than any run needs; what is computed from such numbers still fits in 64 bits, and in
# float32.
MOST_OF_ANY = 10**15
# Less, where more would fill the memory, or is more than a library takes.
MOST: dict[str, float] = {
    "seed": 2**32 - 1,  # JAX looks at 32 bits of it
    "batch_size": 10**9,
    "worker_batch_size": 10**9,
    "evaluation.batch_size": 10**9,
    "allreduce.bucket_mib": 10**6,
    "allreduce.grid": 10**6,
    "model.width": 1000,
    "model.num_classes": 10**7,
    "data.image_size": 10**4,  # 100 million pixels, as `decode.MAX_PIXELS` has it
    "data.evaluation_short_side": 2 * 10**4,
    "data.crop_padding": 10**4,
    "data.synthetic_classes": 10**6,
    "data.threads": 1000,
    "diagnostics.confusion.pairs": 10**6,
    "learning_rate.decay_factor": 10**6,
    "learning_rate.decay_past_end_steps": 10**8,
    "runtime.heartbeat_seconds": 10**6,
    "runtime.start_seconds": 10**6,
    "runtime.stall_minutes": 10**6,
}
MOST_NUMBERS = 1000
# The longest path of Linux.
MOST_CHARACTERS = 4096


def check(key: str, value: Any) -> None:
    """Whether a value is of a sensible size.

    Raises:
      ConfigError: a number, or one of several, that is negative (but for means of pixels), not
        finite, or too large; too many of them; text that is too long, or not of one line.
    """
    if isinstance(value, str):
        _check_text(key, value)
    elif isinstance(value, tuple):
        if len(value) > MOST_NUMBERS:
            raise ConfigError(f"{key} holds {len(value):,} numbers, more than {MOST_NUMBERS:,}")
        for number in value:
            _check_number(key, number)
    elif _is_number(value):
        _check_number(key, value)


def _check_number(key: str, value: Any) -> None:
    if not _is_number(value):
        raise ConfigError(f"{key} must hold numbers, not {short_repr(value)}")
    most = MOST.get(key, MOST_OF_ANY)
    # Only the means of pixels can sensibly be negative.
    least = -most if key == "data.mean" else 0
    if value != value or value in (math.inf, -math.inf) or value < least:
        raise ConfigError(f"{key} must be finite and not negative, not {short_repr(value)}")
    if value > most:
        raise ConfigError(f"{key} must be at most {most:,}, not {short_repr(value)}")


def _check_text(key: str, value: str) -> None:
    if len(value) > MOST_CHARACTERS:
        raise ConfigError(f"{key} has {len(value):,} characters, more than {MOST_CHARACTERS:,}")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
        raise ConfigError(f"{key} must not hold control characters: {short_repr(value)}")
