"""Keys of the weights that a run starts from."""

from typing import Any

from lbsgd.config.keys import ON, Key, Keys
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

# What a run's identity calls them.
IDENTITY = "the initial weights"
MISSING, UNEXPECTED = "missing", "unexpected"
WRONG_SHAPE, WRONG_TYPE = "wrong shape", "wrong type"

MISFITS = (MISSING, UNEXPECTED, WRONG_SHAPE, WRONG_TYPE)
_WILD = "*?["


def _check_allowed(name: str, value: Any) -> None:
    for word in value:
        if not isinstance(word, str) or (word not in MISFITS and not set(_WILD) & set(word)):
            raise ConfigError(
                f"{name} must hold some of {', '.join(map(repr, MISFITS))}, or patterns with a * "
                f"like 'fc.*', not {short_repr(word)}"
            )


_WITH_FILE = {"init_from": ON}

# Where the weights lie may change: which they are is part of what a run is, by their fingerprint.
KEYS: Keys = {
    "init_from": Key(
        "",
        "The weights that the run starts from: a file (safetensors, a state dict of PyTorch or "
        "Flax's msgpack; the names of torchvision and timm, or lbsgd's own), or another run: its "
        "workdir, of which the newest checkpoint counts, or one of its checkpoints. {seed} stands "
        "for the run's seed.",
        machine=True,
    ),
    "init_ema": Key(
        False,
        "Whether the averaged weights of the other run are taken, in place of its last ones.",
        machine=True,
        used_with=_WITH_FILE,
    ),
    "init_allow": Key(
        (),
        f"The arrays that need not fit: those that are {MISSING!r} in the file, {UNEXPECTED!r}, of "
        f"{WRONG_SHAPE!r} or {WRONG_TYPE!r}; or a pattern of names like 'fc.*'.",
        check=_check_allowed,
        own_check=True,
        machine=True,
        used_with=_WITH_FILE,
    ),
}
