"""Loads a trained network from what its run has left."""

import itertools
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections

from lbsgd.checkpoint.manifest import misfits, named_leaves
from lbsgd.config.dotted import is_dotted
from lbsgd.config.dotted import load as load_code
from lbsgd.config.keys import value_of
from lbsgd.models.networks import Network, build_network
from lbsgd.run.config import KEYS
from lbsgd.system.devices import count_devices, precision
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath
from lbsgd.system.text import one_line, short_repr
from lbsgd.use.model import Model
from lbsgd.use.statistics import precise
from lbsgd.use.stored import CODE, Say, Stored, read_stored

# Where a run keeps its weights, by the word for them.
WEIGHTS = {"raw": "", "average": "ema/"}
# Those that a run itself is evaluated with, whichever these are.
OWN_STATISTICS = "own"
STATISTICS = ("running", "precise", OWN_STATISTICS)
# Keys that may name code: of the network, of the task, and of all that a training takes.
_OF_NETWORK = ("model.name", "model.roles")
_OF_TASK = ("task.name", "task.loss")
_OF_TRAINING = tuple(name for name, key in KEYS.items() if key.dotted and not key.machine)


class Wanted(NamedTuple):
    """Holds how a network is to be loaded; see `load`.

    Attributes:
      statistics: also `OWN_STATISTICS`.
      evaluation: whether it is to be evaluated: its task is needed too, and the devices are by
        default as many as the run was evaluated on, where these are here.
    """

    checkpoint: str | int = "newest"
    weights: str = "raw"
    statistics: str = "running"
    devices: int = 0
    keys: Mapping[str, Any] = {}
    allow_code: bool = False
    evaluation: bool = False

    def check(self) -> None:
        """Raises ConfigError for words that are not known."""
        for name, known in (("weights", WEIGHTS), ("statistics", STATISTICS)):
            given = getattr(self, name)
            if given not in known:
                first, second, *_ = known
                raise ConfigError(f"{name} must be {first} or {second}, not {short_repr(given)}")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=5)


def load(
    run: str | AnyPath,
    checkpoint: str | int = "newest",
    *,
    weights: str = "raw",
    statistics: str = "running",
    devices: int = 0,
    keys: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    say: Say = _warn,
) -> Model:
    """Loads the network of a run, with its weights.

    No data are opened, but for precise statistics.

    Args:
      run: the workdir of a run, its folder of checkpoints, or one checkpoint, wherever it was
        copied to; a path on a disk or in a bucket.
      checkpoint: "newest", "best" (the one with the best evaluation in metrics.jsonl, of those
        there are; of equals the later), or an update index.
      weights: "raw", or "average" for the moving average of a run that keeps one.
      statistics: "running", or "precise" for batch norm's over `batch_norm.precise_examples`
        examples of the training set.
      devices: how many to compute on; 0 for all there are.
      keys: values of the config to set, by dotted key, such as {"data.dir": "/data"}.
      allow_code: whether to import the network that the run names as "package.module:name". Who
        wrote the run chose that name, so it is refused unless you trust it.
      say: takes a line, such as that a damaged checkpoint is passed over; by default a warning.

    Raises:
      ConfigError: there is no such run or checkpoint, it is damaged, or it names code.
    """
    wanted = Wanted(checkpoint, weights, statistics, devices, keys or {}, allow_code)
    return load_stored(run, wanted, say)[1]


def load_stored(run: str | AnyPath, wanted: Wanted, say: Say) -> tuple[Stored, Model]:
    """Loads a network, with what its run has left besides; see `load`."""
    wanted.check()
    stored = read_stored(run, wanted.checkpoint, wanted.weights == "average", say)
    config = stored.config(wanted.keys)
    precisely = wanted.statistics == "precise"
    if wanted.statistics == OWN_STATISTICS:
        precisely = config.batch_norm.precise_examples > 0
    code = _OF_TRAINING if precisely else _OF_NETWORK + _OF_TASK * wanted.evaluation
    _check_code(stored, config, code, wanted.allow_code)
    with precision(config.dtype):
        network = _network(stored, config)
        params, stats = _variables(stored, network, wanted.weights)
    devices = _devices(stored, wanted)
    if precisely:
        stats = precise(stored, {**wanted.keys, "devices": devices}, params, stats)
    variables = {"params": params, "batch_stats": stats}
    model = Model(
        network,
        variables,
        stored.interface,
        config,
        stored.manifest.update,
        statistics="precise" if precisely else "running",
        devices=devices,
    )
    return stored, model


def _devices(stored: Stored, wanted: Wanted) -> int:
    """Counts the devices to compute on."""
    asked = wanted.devices or wanted.keys.get("devices", 0)
    before = stored.evaluated_on.get("devices", 0) if wanted.evaluation else 0
    return count_devices(asked or (before if before <= jax.device_count() else 0))


def _check_code(
    stored: Stored, config: ml_collections.ConfigDict, keys: Iterable[str], allowed: bool
) -> None:
    """Checks that code which a run names may be imported, and is what it was trained with.

    Args:
      keys: of the config, which may name it.

    Raises:
      ConfigError: it may not, or is not.
    """
    trained_with = stored.manifest.identity.get(CODE)
    digests = trained_with if isinstance(trained_with, dict) else {}
    for key, name in itertools.chain.from_iterable(_named(config, key) for key in keys):
        if not allowed:
            raise ConfigError(
                f"{stored.path} names code, {key}={name!r}, and nothing that is loaded chooses "
                "what is run; allow_code=True, or --allow_code, allows it, if you trust that run"
            )
        named, digest = load_code(key, name), digests.get(name)
        if digest and not named.digest.startswith(str(digest)) and not config.code_may_differ:
            raise named.error(
                "is no longer what the run was trained with; code_may_differ=True takes it as it is"
            )


def _named(config: ml_collections.ConfigDict, key: str) -> list[tuple[str, str]]:
    """Pairs a key with each dotted name that it holds."""
    value = value_of(config, key)
    names = value if isinstance(value, tuple) else (value,)
    return [(key, str(name)) for name in names if is_dotted(str(name))]


def _network(stored: Stored, config: ml_collections.ConfigDict) -> Network:
    """Builds the network, without its data."""
    outputs = config.model.num_classes or len(stored.interface.classes)
    if not outputs:
        raise ConfigError(f"{stored.path} does not say how many outputs its network has")
    return build_network(config, outputs, stored.interface.image_shape)


def _variables(stored: Stored, network: Network, weights: str) -> tuple[Any, Any]:
    """Takes parameters and statistics from a checkpoint, as the network has them.

    Raises:
      ConfigError: it has no such weights, or those of another network.
    """
    prefix = WEIGHTS[weights]
    params, stats = jax.eval_shape(lambda: network.initialize())
    like = {"params": params, "batch_stats": stats}
    wanted = {f"{prefix}{name}": leaf for name, leaf in named_leaves(like).items()}
    groups = tuple(f"{prefix}{group}/" for group in like)
    own = {n: entry for n, entry in stored.manifest.arrays.items() if n.startswith(groups)}
    if not own and prefix:
        raise ConfigError(f"{stored.path} has no averaged weights; its run has ema.decay=0")
    wrong = misfits(stored.manifest._replace(arrays=own), wanted)
    if wrong:
        raise ConfigError(
            f"{stored.path} is not of the network that it describes: {one_line(wrong)}; it was "
            f"written by lbsgd {one_line(stored.manifest.version)}"
        )
    leaves = [stored.arrays[name] for name in wanted]
    found = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return found["params"], found["batch_stats"]
