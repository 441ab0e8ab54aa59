"""Writes the reference of the config from what the rooms declare, so that it cannot be stale."""

from collections.abc import Iterator

from lbsgd.config.describe import bounds, choices_of, used_with
from lbsgd.config.keys import UNITS, Key, Keys, names_of_times
from lbsgd.run.config import ROOMS

_TITLES = {
    "workers": "Workers: batch sizes, placement, all-reduce",
    "schedule": "Schedule: length, learning rate, batch growth, diagnostics",
    "optim": "Optimizer",
    "models": "Network, batch norm, precision",
    "weights": "Weights that a run starts from",
    "tasks": "Task and loss",
    "step": "Averaged weights, updates that are not finite",
    "data": "Data and augmentation",
    "run": "Run: seed, evaluation, checkpoints, log, processes",
}


def page() -> str:
    """Writes all keys by room."""
    parts = []
    for room, keys in ROOMS.items():
        parts += [f"## {_TITLES[room]} {{ #{room} }}", *_entries(keys)]
    return "\n\n".join(parts)


def _entries(keys: Keys) -> Iterator[str]:
    """Writes an entry of each key; the three of a time share one."""
    times = {f"{name}{unit}": name for name in names_of_times(keys) for unit in UNITS}
    for name, key in keys.items():
        if name not in times:
            yield from _entry(name, key)
        elif name.endswith(UNITS[0]):
            yield from _time(times[name], keys)


def _entry(name: str, key: Key) -> Iterator[str]:
    yield f"### {name} {{ #{name} }}"
    yield key.meaning
    follows = ", which stands for a number that follows from others" if key.follows else ""
    default = f'"{key.default}"' if isinstance(key.default, str) else key.default
    yield _facts([_type(key), f"default `{default}`{follows}", key.unit, *_limits(key)])


def _time(name: str, keys: Keys) -> Iterator[str]:
    first = keys[name + UNITS[0]]
    yield f"### {name}\\_epochs, \\_steps, \\_examples {{ #{name}{UNITS[0]} }}"
    anchors = "".join(f'<span id="{name}{unit}"></span>' for unit in UNITS[1:])
    yield f"{anchors}{first.meaning} One of the three is set, and the others are 0."
    each = [
        f"`{unit}` {_type(key)}, default `{key.default}` {key.unit}"
        for unit, key in ((unit, keys[name + unit]) for unit in UNITS)
    ]
    yield _facts([*each, *_limits(first)])


def _type(key: Key) -> str:
    return type(key.default).__name__


def _limits(key: Key) -> list[str]:
    words = " or ".join(f"`{word}`" if word else '`""`' for word in choices_of(key))
    used = used_with(key)
    lines = [words, bounds(key), f"used with {used}" if used else ""]
    return lines + ["may differ when a run resumes"] * key.machine


def _facts(parts: list[str]) -> str:
    return "{ .facts }\n".join([" · ".join(filter(None, parts)) + "\n", ""])
