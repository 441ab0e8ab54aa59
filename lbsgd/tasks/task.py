"""Says what a task is: pure functions, and the metrics that they compute.

The loop, the log, the report and the pictures ask a task, and know nothing of labels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from lbsgd.workers.reductions import NAMED, How, Reduction


@dataclasses.dataclass(frozen=True)
class Metric:
    """Declares a metric.

    Attributes:
      unit: "%" of what is in percent; "" of all else.
      rises: whether more is better.
      reduction: how the workers' values become that of the minibatch, in training: "mean", "sum",
        "max" or a `Reduction`.
      words: as people read it, such as "top-5"; by default its name.
      complement: of a metric in percent, the name of 100 less it: "accuracy" of "error".
    """

    unit: str = ""
    rises: bool = False
    reduction: How = "mean"
    words: str = ""
    complement: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.reduction, Reduction) or self.reduction in NAMED):
            raise ValueError(
                f"a metric's reduction is {', '.join(NAMED)} or a Reduction, not {self.reduction!r}"
            )
        if self.unit not in ("", "%"):
            raise ValueError(f"a metric's unit is '' or '%', not {self.unit!r}")

    def format(self, value: float) -> str:
        """Writes a value with its unit: "24.10%", "0.6931"."""
        return f"{value:.2f}%" if self.unit == "%" else f"{value:.4f}"


def label_only(labels: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """Puts the labels of a source into a batch as they are, as `label`."""
    return {"label": labels}


def means(sums: Mapping[str, np.ndarray], examples: int) -> dict[str, float]:
    """Divides the sums of an evaluation by the number of examples."""
    return {name: float(total) / examples for name, total in sums.items()}


@dataclasses.dataclass(frozen=True)
class Task:
    """Says what is learned, and by what it is judged.

    A batch is a mapping of arrays `[n, ...]`: the network's input `image`, and what `targets` makes
    of the labels of the data.

    Attributes:
      loss: (outputs, batch, **numbers) -> (loss, metrics by name), of a worker: from the network's
        outputs for its n examples, a scalar that is averaged over workers and differentiated, and
        scalars (or trees, with a `Reduction`) for `metrics`.
      evaluate: (outputs, batch) -> by name an array `[n, ...]`, which evaluation sums up over all
        examples, each once.
      metrics: what `loss` gives besides the loss itself, by name; reported as `train_NAME`.
      validation: what evaluation gives, by name; reported as `val_NAME`.
      headline: the one of `validation` that a run is judged by.
      summarize: (sums by name, how many examples) -> the numbers of `validation`, by name; by
        default means.
      targets: labels of the data, int32 `[n]` -> arrays `[n, ...]` of a batch, on the host.
      numbers: what `loss` takes as keywords: numbers that may differ between runs which share one
        compiled step.
      wrong_outputs: shapes of the network's outputs for one image -> what is wrong with them, "" if
        nothing is.
      sampled_loss: (outputs, key) -> the mean loss -log p(y) of n labels y, one of each example,
        drawn by the key (of `jax.random`) from the distribution p that the outputs say; without
        smoothing. Its gradient's second moment is the Fisher (`optimizer.fisher="1mc"`). None where
        the outputs say none.
      mixes: whether `loss` and `targets` know of mixup and CutMix: a batch then has `mix_share`
        too, and each example's partner is the next one of its worker, cyclically.
      distributions: (batch) -> what its targets are as distributions, `[n, classes]`; None where
        `loss` knows nothing of running mixup. Else a batch has `mixed_target` too, in their place.
    """

    loss: Callable[..., tuple[Any, Mapping[str, Any]]]
    evaluate: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]
    metrics: Mapping[str, Metric]
    validation: Mapping[str, Metric]
    headline: str
    summarize: Callable[[Mapping[str, np.ndarray], int], Mapping[str, float]] = means
    targets: Callable[[np.ndarray], Mapping[str, np.ndarray]] = label_only
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    wrong_outputs: Callable[[Any], str] = lambda outputs: ""
    sampled_loss: Callable[[Any, Any], Any] | None = None
    mixes: bool = False
    distributions: Callable[[Mapping[str, Any]], Any] | None = None

    def __post_init__(self) -> None:
        if self.headline not in self.validation:
            known = ", ".join(self.validation)
            raise ValueError(f"headline {self.headline!r} is none of validation: {known}")
        for name, metric in self.validation.items():
            if metric.reduction != "mean":
                raise ValueError(
                    f"validation metric {name!r} has a reduction, which is of training; evaluation "
                    "sums up what `evaluate` gives, and `summarize` makes numbers of the sums"
                )
        if "loss" in self.metrics:
            raise ValueError("metrics must not hold 'loss', which every task has")

    @property
    def reductions(self) -> dict[str, How]:
        """Says how each metric of training is reduced over workers."""
        return {name: metric.reduction for name, metric in self.metrics.items()}

    @property
    def best(self) -> Metric:
        """The metric that a run is judged by."""
        return self.validation[self.headline]
