"""Which values the keys of a config may have."""

from collections.abc import Mapping
from typing import Any

from lbsgd.config import bounds
from lbsgd.run import target
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr
from lbsgd.workers.collectives.names import ALGORITHMS, DTYPES

CHOICES = {
    "dtype": ("float32", "bfloat16", "float64"),
    "matmul_precision": ("highest", "high", "default"),
    "model.normalization": ("batch", "group", "none"),
    "batch_norm.running_variance": ("within", "total"),
    "learning_rate.scaling": ("linear", "sqrt", "none"),
    "learning_rate.warmup": ("gradual", "constant", "none"),
    "learning_rate.warmup_from": ("reference", "zero"),
    "learning_rate.decay_from": ("warmup", "start"),
    "learning_rate.decay": ("steps", "cosine", "polynomial", "none"),
    "optimizer.name": ("sgd", "lars", "lamb"),
    "optimizer.momentum_form": ("rate_outside", "rate_inside"),
    "optimizer.weight_decay_form": ("coupled", "decoupled"),
    "optimizer.trust_at_zero": ("one", "formula"),
    "allreduce.algorithm": ALGORITHMS,
    "allreduce.dtype": ("own", *DTYPES),
    "data.crop": ("none", "padded", "inception"),
    "data.on_corrupt": ("error", "skip"),
    "batch_growth.compensate": ("none", "rate", "momentum"),
    "on_nonfinite": ("stop", "skip"),
    "checkpoint.on_error": ("continue", "stop"),
    "runtime.on_stall": ("report", "end"),
}

POSITIVE = (
    "batch_size",
    "worker_batch_size",
    "batch_norm.synced_workers",
    "data.image_size",
    "data.synthetic_classes",
    "data.synthetic_examples",
    "data.synthetic_validation_examples",
    "learning_rate.reference_batch_size",
    "learning_rate.warmup_power",
    "optimizer.trust_coefficient",
    "diagnostics.workers.window",
    "diagnostics.confusion.pairs",
    "diagnostics.confusion.batch_size",
    "log.every_steps",
    "checkpoint.keep",
    "runtime.heartbeat_seconds",
    "runtime.start_seconds",
    "model.width",
    "batch_norm.epsilon",
    "allreduce.bucket_mib",
)

FRACTIONS = (
    "label_smoothing",
    "data.validation_fraction",
    "batch_norm.momentum",
    "optimizer.momentum",
    "optimizer.beta1",
    "optimizer.beta2",
)

# Pairs of a least and a greatest number, and what these may be.
RANGES = {"data.crop_area": (1e-6, 1.0), "data.crop_aspect": (1e-3, 1e3)}


def check_values(values: Mapping[str, Any]) -> None:
    """Whether each value is one of those its key may have.

    Args:
      values: of all keys, by dotted key.

    Raises:
      ConfigError: one is not.
    """
    for key, value in values.items():
        if key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(
                f"unknown {key} {short_repr(value)}; known: {', '.join(CHOICES[key])}"
            )
        if key in POSITIVE and value <= 0:
            raise ConfigError(f"{key} must be positive, not {short_repr(value)}")
        if key in FRACTIONS and not 0 <= value < 1:
            raise ConfigError(f"{key} must be at least 0 and less than 1, not {short_repr(value)}")
        if key == "stop_at":
            target.check(value)
        else:
            bounds.check(key, value)
    for key, (least, most) in RANGES.items():
        if len(values[key]) != 2 or not least <= values[key][0] <= values[key][1] <= most:
            raise ConfigError(
                f"{key} must be a least and a greatest number, from {least:g} to {most:g}, not "
                f"{short_repr(values[key])}"
            )
    _check_tuples(values)
    if values["matmul_precision"] != "highest" and values["dtype"] == "float64":
        raise ConfigError(
            f"matmul_precision={values['matmul_precision']!r} is of products of float32, and dtype="
            "'float64' has none; leave it at 'highest'"
        )
    if values["data.erasing"] > 1:
        raise ConfigError(f"data.erasing is a probability, not {values['data.erasing']}")


def _check_tuples(values: Mapping[str, Any]) -> None:
    if len(values["data.color_jitter"]) != 3 or max(values["data.color_jitter"]) > 1:
        raise ConfigError(
            "data.color_jitter must be three numbers from 0 to 1 (brightness, contrast, "
            f"saturation), not {short_repr(values['data.color_jitter'])}"
        )
    grid = values["allreduce.grid"]
    if len(grid) != 2 or not all(isinstance(n, int) for n in grid) or (min(grid) < 1 and any(grid)):
        raise ConfigError(
            f"allreduce.grid must be two whole numbers, or (0, 0), not {short_repr(grid)}"
        )
    sizes = values["batch_growth.sizes"]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConfigError(f"batch_growth.sizes must be whole and positive, not {short_repr(sizes)}")
    steps = values["batch_growth.at_steps"]
    if not all(isinstance(step, int) for step in steps):
        raise ConfigError(f"batch_growth.at_steps must be whole numbers, not {short_repr(steps)}")
    decays = values["learning_rate.decay_epochs"]
    if list(decays) != sorted(set(decays)):
        raise ConfigError(f"learning_rate.decay_epochs must increase, not {short_repr(decays)}")
