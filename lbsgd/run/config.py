"""The config of a run: every key there is, and the check of its form.

A config file starts from `default_config()` and sets what differs:

    def get_config(arg=""):
        config = default_config()
        config.batch_size = 1024
        return config

Times can be given in epochs, steps (updates) or examples: by one key of the three, the others 0.
"""

import difflib
from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.run.values import check_values
from lbsgd.schedule.times import given
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

# Keys that say where and how a run is computed, not what: they may differ when it goes on.
MACHINE_KEYS = (
    "devices",
    "accumulation_steps",
    "device_memory_gib",
    "allreduce.algorithm",
    "allreduce.bucket_mib",
    "allreduce.grid",
    "data.dir",
    "data.threads",
    "data.on_corrupt",
    "data.max_corrupt",
    "evaluation.batch_size",
    "on_nonfinite",
    "max_nonfinite",
    "stop_at",
    "checkpoint.",
    "diagnostics.",
    "log.",
    "runtime.",
)


def _times(name: str, epochs: float = 0.0) -> dict[str, Any]:
    """The three ways to give a time; 0 leaves one out."""
    return {f"{name}_epochs": epochs, f"{name}_steps": 0, f"{name}_examples": 0}


def default_config() -> ml_collections.ConfigDict:
    """All keys, with the paper's value where the paper has one (Goyal et al. 2017, section 5.1)."""
    config = ml_collections.ConfigDict(
        {
            # Of initialisation, order and augmentation.
            "seed": 0,
            # kn, examples in one update, over all workers.
            "batch_size": 256,
            # n, examples of one worker: its batch-norm statistics are over these.
            "worker_batch_size": 32,
            # Length of training.
            **_times("total"),
            # The first evaluation that reaches this ends the run: () for none, or a metric (see
            # lbsgd.run.target.METRICS) and a number, like ("val_error", 24.1).
            "stop_at": (),
            # A batch size that changes; n stays, and k follows.
            "batch_growth": {
                # The batch sizes after the first, and when each begins, by epoch or by update.
                "sizes": (),
                "at_epochs": (),
                "at_steps": (),
                # Instead of these: where learning_rate.decay="steps" would decay the rate, the
                # batch grows by as much, up to `largest` (0: any); from there on the rate decays.
                "in_place_of_decay": False,
                "largest": 0,
                # What changes with the size: "none", the "rate" by learning_rate.scaling, or the
                # "momentum", so that the noise scale stays.
                "compensate": "none",
            },
            # How many devices; 0 for all there are.
            "devices": 0,
            # Steps in which a device goes through its workers; 0 for the fewest that fit in it.
            "accumulation_steps": 1,
            # Memory of a device for accumulation_steps=0; 0 asks the device (of a CPU, half of the
            # machine's memory).
            "device_memory_gib": 0.0,
            # Of activations. float64 makes parameters float64 too (to study exactness).
            "dtype": "float32",
            # Of products of float32, as JAX names it: "highest" is float32 in full on every device.
            # "high" and "default" are TF32 on a GPU, and three bfloat16 passes or one on a TPU; on
            # a CPU they are as "highest". Of bfloat16 activations only the classifier has such.
            "matmul_precision": "highest",
            "label_smoothing": 0.0,
            # "stop": the run ends when loss or gradient are not finite. "skip": such an update
            # leaves the state as it was, and the run ends past max_nonfinite of them.
            "on_nonfinite": "stop",
            "max_nonfinite": 10,
            "model": {
                # "resnet18", 34, 50, 101 or 152, or "cifar_resnetD" with D = 6n + 2.
                "name": "resnet50",
                # 0 for as many as the data have.
                "num_classes": 0,
                # Multiplier of all channel counts.
                "width": 1.0,
                "skip_connections": True,
                # Last scale of each residual block starts at 0; without scales, its last kernel.
                "zero_init_residual": True,
                # "batch"; "group" (Wu and He 2018, up to 32 groups of two or more channels); or
                # "none", where convolutions have biases. Keys of batch_norm are of "batch", but
                # epsilon, which is of "group" too.
                "normalization": "batch",
            },
            "batch_norm": {
                # m in: running <- m running + (1 - m) new.
                "momentum": 0.9,
                "epsilon": 1e-5,
                # Workers that share statistics; 1 for none (the paper's).
                "synced_workers": 1,
                # "within": mean of the workers' biased variances; "total": plus variance of means.
                "running_variance": "within",
                # Recompute the statistics over this many training examples before each
                # evaluation (rounded up to whole minibatches); 0 uses the running averages.
                "precise_examples": 0,
            },
            "learning_rate": {
                "reference_learning_rate": 0.1,
                "reference_batch_size": 256,
                # "linear", "sqrt" or "none": from the reference to batch_size.
                "scaling": "linear",
                # "gradual", "constant" or "none"; from the reference rate (Goyal et al.) only where
                # batch_size > reference_batch_size, from "zero" (MLPerf) always.
                "warmup": "gradual",
                "warmup_from": "reference",
                # Of "gradual": 1 for a constant increment.
                "warmup_power": 1.0,
                **_times("warmup", epochs=5.0),
                # "steps", "cosine", "polynomial" or "none".
                "decay": "steps",
                # Of "cosine" and "polynomial", whether they begin at the end of "warmup" or at the
                # "start" of training, so that warmup ends above them and the rate then drops.
                "decay_from": "warmup",
                # Of "steps": by decay_factor at each of these.
                "decay_epochs": (30.0, 60.0, 80.0),
                "decay_factor": 0.1,
                # Of "polynomial": its power, the rate it ends at, and how many updates past the end
                # of training it would get there (1 in MLPerf).
                "decay_power": 2.0,
                "decay_end_rate": 0.0,
                "decay_past_end_steps": 0,
            },
            "optimizer": {
                # "sgd", "lars" or "lamb". Momentum, its three forms, and the form of the decay are
                # of sgd and lars.
                "name": "sgd",
                "momentum": 0.9,
                "nesterov": True,
                # "rate_outside", equation (9), or "rate_inside", equation (10). With lars the trust
                # ratio is where the rate is: "rate_inside" is the paper's ("scaled") variant.
                "momentum_form": "rate_outside",
                # Of "rate_inside"; the papers of LARS have none.
                "momentum_correction": True,
                "weight_decay": 1e-4,
                # "coupled" (L2) or "decoupled" (scaled by the learning rate).
                "weight_decay_form": "coupled",
                # Of lars: eta, and what is added to the norms below it.
                "trust_coefficient": 0.001,
                "trust_epsilon": 0.0,
                # Of lars: the trust ratio where a norm is 0, "one" (MLPerf's reference) or by the
                # paper's "formula": eta / weight_decay of a gradient of 0, and 0 of weights of 0.
                "trust_at_zero": "one",
                # Of lamb. phi: () for none, or the least and the greatest norm.
                "beta1": 0.9,
                "beta2": 0.999,
                "epsilon": 1e-6,
                "norm_clip": (),
            },
            "allreduce": {
                # "psum" (XLA's own), "ring", "halving_doubling", "binary_blocks", "torus_2d" or
                # "hierarchical": see docs/collectives.md.
                "algorithm": "psum",
                # What gradients are sent in: their "own" type, or "bfloat16" or "float16", of which
                # the sums are float32.
                "dtype": "own",
                # Gradients that are reduced together; "psum" without a dtype takes all.
                "bucket_mib": 32.0,
                # Of "torus_2d", (devices in a row, rows); of "hierarchical", (devices of a host,
                # hosts). (0, 0) for as square as possible, and for the hosts that there are.
                "grid": (0, 0),
            },
            "data": {
                # "packed", "folder", "tfds", "npz", "digits" or "synthetic".
                "source": "digits",
                # Where the data lie.
                "dir": "",
                # Of "folder" and "npz" without a validation set: the part of their images that is
                # held out, by a hash of the seed and each one's name (lbsgd.data.sources.held_out).
                "validation_fraction": 0.0,
                # Of "tfds": the dataset, and its splits; no validation split means "validation"
                # where there is one, else "test".
                "tfds_name": "imagenet2012",
                "tfds_train": "train",
                "tfds_validation": "",
                # "none": images as they are, all of one shape. "padded": zeros around them and back
                # to their size. "inception": a random part, resized; in evaluation the centre.
                "crop": "none",
                # Of "padded": zeros on each side.
                "crop_padding": 4,
                # Of "inception": part of the image's area, width / height, and the size after it.
                "crop_area": (0.08, 1.0),
                "crop_aspect": (3 / 4, 4 / 3),
                "image_size": 224,
                # Of "inception": resampled with a filter as wide as the crop shrinks, as Pillow and
                # torchvision have it; without it faster (docs/data.md). Evaluation always has it.
                "crop_antialias": False,
                # Of "inception": evaluation resizes the short side to this, and takes the centre; 0
                # for 256/224 of image_size, as is usual.
                "evaluation_short_side": 0,
                "flip": False,
                # Of brightness, contrast and saturation: factors within 1 - j and 1 + j.
                "color_jitter": (0.0, 0.0, 0.0),
                # Standard deviation of PCA lighting; 0.1 in Krizhevsky et al. 2012.
                "lighting": 0.0,
                # alpha of Beta(alpha, alpha); 0 for none. With both, an example takes either.
                "mixup": 0.0,
                "cutmix": 0.0,
                # Probability of random erasing.
                "erasing": 0.0,
                # Of pixels / 255, one number a channel.
                "mean": (0.5,),
                "std": (0.5,),
                # "error": a corrupt image stops the run. "skip": it is named in the workdir, the
                # next one takes its place, and the run stops past max_corrupt different ones.
                "on_corrupt": "error",
                "max_corrupt": 10,
                # Threads that load batches; 0 for one a core.
                "threads": 0,
                # Of "synthetic"; on_device trains on one batch that is made there and never loaded.
                "synthetic_classes": 1000,
                "synthetic_examples": 1_281_167,
                "synthetic_validation_examples": 50_000,
                "synthetic_on_device": False,
            },
            # The first is at the offset, or after one interval; the last always at the end.
            # batch_size: examples at once; 0 for as many as an accumulation step trains.
            "evaluation": {**_times("every"), **_times("offset"), "batch_size": 0},
            "checkpoint": {
                **_times("every"),
                # Besides; 0 for never.
                "every_minutes": 10.0,
                # How many; the newest that verifies is never removed.
                "keep": 3,
                # "continue": training goes on when one cannot be written. "stop": it ends.
                "on_error": "continue",
            },
            # How far a batch can grow (docs/diagnostics.md). Each is off until it has a time.
            "diagnostics": {
                # Noise scale, and cosines of neighbouring workers; every_steps=100 costs less than
                # 3% of the time. Averaged over the last `window` measurements: fewer follow faster,
                # more scatter less.
                "workers": {**_times("every"), "window": 5},
                # Gradient confusion: cosines of so many pairs of minibatches.
                "confusion": {**_times("every"), "pairs": 100, "batch_size": 128},
                # Norms of gradient, parameters and update, and trust ratios, by parameter array.
                "layers": {**_times("every")},
                # For memory: the workers of a device one after the other. Slow on a CPU.
                "in_turn": False,
            },
            # Metrics every so many updates; TensorBoard summaries where tensorflow is installed.
            "log": {"every_steps": 100, "tensorboard": True},
            "runtime": {
                # Several processes: one that has not been heard of for so long ends all, and how
                # long they wait for each other at the start.
                "heartbeat_seconds": 60,
                "start_seconds": 300,
                # Without an update for so long, the stacks of all threads are written to the log of
                # the process, and with "end" it ends (exit code 1); 0 for never.
                "stall_minutes": 10.0,
                "on_stall": "report",
            },
        }
    )
    return config.lock()


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value, in order of the keys."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, ml_collections.ConfigDict) and len(value):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nearest_key(key: str) -> str:
    """The known key most like `key`: in its last part first, then as a whole."""
    key = key[:100]  # more would take long
    known = [name for name, _ in flatten(default_config())]
    known += sorted({name.rsplit(".", 1)[0] for name in known if "." in name})
    last_parts = {name.rsplit(".", 1)[-1] for name in known}
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], last_parts, 1, 0.7)
    if close:
        known = [name for name in known if name.rsplit(".", 1)[-1] == close[0]]
    return difflib.get_close_matches(key, known, 1, 0.0)[0]


def check_known(key: str) -> None:
    """Raises ConfigError if there is no key `key` (dotted; a group of keys counts)."""
    known = [name for name, _ in flatten(default_config())]
    if not any(name == key or name.startswith(key + ".") for name in known):
        raise ConfigError(
            f"unknown config key {short_repr(key)}; the nearest known one is {nearest_key(key)!r}"
        )


def check_is_key(key: str) -> None:
    """Raises ConfigError if `key` (dotted) is unknown, or is a group of keys."""
    check_known(key)
    inside = [name for name, _ in flatten(default_config()) if name.startswith(key + ".")]
    if inside:
        raise ConfigError(f"{key} is a group of keys; set one of them: {', '.join(inside)}")


def kind_of(key: str) -> str:
    """The name of the type of the known key `key`."""
    return type(dict(flatten(default_config()))[key]).__name__


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A complete, checked copy of a config, frozen, with the numbers that follow from others.

    Raises:
      ConfigError: an unknown key, a wrong type, or a value out of range.
    """
    resolved = default_config()
    for key, value in _read(config):
        check_known(key)
        *groups, leaf = key.split(".")
        part = resolved
        for group in groups:
            part = part[group]
        if isinstance(part.get(leaf), ml_collections.ConfigDict):
            raise ConfigError(f"config key {key!r} is a group of keys, not {short_repr(value)}")
        kind = part.get_type(leaf)
        try:
            # ml_collections itself takes None for anything and True for 1.
            if value is None or (isinstance(value, bool) and kind is not bool):
                raise TypeError
            part[leaf] = value
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"{key} must be {kind.__name__}, not {short_repr(value)} ({type(value).__name__})"
            ) from error
    check_values(dict(flatten(resolved)))
    _check_times(resolved)
    data = resolved.data
    data.evaluation_short_side = data.evaluation_short_side or usual_short_side(data.image_size)
    return ml_collections.FrozenConfigDict(resolved)


def usual_short_side(image_size: int) -> int:
    """The short side, in pixels, of which evaluation takes the centre `image_size`: 256 for 224."""
    return round(image_size * 256 / 224)


def _read(config: ml_collections.ConfigDict) -> list[tuple[str, Any]]:
    """All keys and values, or ConfigError where a file made something else of its config."""
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"get_config must return a ConfigDict, not {short_repr(config)}")
    try:
        return list(flatten(config))
    except RecursionError as error:
        raise ConfigError("the config holds itself; a group must not be one of its keys") from error
    except Exception as error:  # of references between keys, which are computed now
        raise ConfigError(f"the config cannot be read: {short_repr(error)}") from error


def _check_times(config: ml_collections.ConfigDict) -> None:
    given(config, "total")
    given(config.learning_rate, "warmup")
    for group in (config.evaluation, config.checkpoint, *config.diagnostics.values()):
        if isinstance(group, ml_collections.ConfigDict):
            given(group, "every")
    given(config.evaluation, "offset")


def run_keys(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The keys and values that decide what the run computes, as JSON would have them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flatten(config)
        if not any(key == m or (m.endswith(".") and key.startswith(m)) for m in MACHINE_KEYS)
    }
