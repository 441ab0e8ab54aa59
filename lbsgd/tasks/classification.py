"""Classifies: one label an example, judged by the error of the largest output."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize
from lbsgd.tasks.losses import cross_entropy, wrong_at
from lbsgd.tasks.task import Metric, Task

# (logits [n, outputs], labels [n]) -> losses [n]; lbsgd's own takes distributions [n, classes] too
Loss = Callable[..., Array]

_ERROR = Metric("%", words="error", complement="accuracy")
_TOP5 = Metric("%", words="top-5", complement="accuracy_top5")


def has_top5(classes: int) -> bool:
    """Tells whether a top-5 error says anything: with 5 classes or fewer it is always 0."""
    return classes > 5


def classification(
    classes: int, *, loss: Loss = cross_entropy, label_smoothing: float = 0.0
) -> Task:
    """Makes the task of telling which of some classes an image shows.

    Its network gives logits `[n, outputs]`, of at least as many outputs as there are classes.

    Args:
      classes: how many labels the data have.
      loss: (logits, labels) -> the loss of each example. A mixed example has that of both its
        labels, by their share. Evaluation has the same loss.
      label_smoothing: of `cross_entropy`, in training; another loss with it takes it as a keyword.
    """
    # None at all costs nothing; any other is a number that the compiled step takes.
    numbers = {"label_smoothing": label_smoothing} if label_smoothing else {}
    validation = {"loss": Metric(), "error": _ERROR}
    if has_top5(classes):
        validation["error_top5"] = _TOP5
    return Task(
        loss=functools.partial(_loss, of_example=loss, classes=classes),
        evaluate=functools.partial(_evaluate, of_example=loss, classes=classes),
        metrics={"error": _ERROR},
        validation=validation,
        headline="error",
        summarize=_summarize,
        numbers=numbers,
        wrong_outputs=functools.partial(_wrong_outputs, classes=classes, images=1),
        # Another loss may be that of no distribution.
        sampled_loss=_sampled_loss if loss is cross_entropy else None,
        mixes=True,
        # A loss of one's own takes labels.
        distributions=functools.partial(_one_hot, classes=classes)
        if loss is cross_entropy
        else None,
    )


def _one_hot(batch: Mapping[str, jax.Array], *, classes: int) -> Float[Array, "n classes"]:
    return jax.nn.one_hot(batch["label"], classes)


def _loss(
    logits: Float[Array, "n outputs"],
    batch: Mapping[str, jax.Array],
    *,
    of_example: Loss,
    classes: int,
    **numbers: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes mean loss and top-1 error; of mixed examples, the error against their own label.

    Equation 5 of Goyal et al. 2017.
    """
    _check(logits, batch, classes)
    labels: Int[Array, " n"] = batch["label"]
    losses = _losses_of(of_example, logits, batch.get("mixed_target", labels), **numbers)
    if "mix_share" in batch:
        # Of two labels, not of one-hot targets: no array [n, classes] is made beside the logits.
        share = batch["mix_share"].astype(losses.dtype)
        partners = jnp.roll(labels, -1, axis=0)
        others = _losses_of(of_example, logits, partners, **numbers)
        losses = share * losses + (1 - share) * others
    wrong = wrong_at(1, logits, labels).astype(losses.dtype)
    return jnp.mean(losses), {"error": 100.0 * jnp.mean(wrong)}


def _sampled_loss(logits: Float[Array, "n outputs"], key: Key[Array, ""]) -> Float[Array, ""]:
    """Computes the mean cross-entropy of labels drawn from the softmax of the logits."""
    # In float32 whatever the type, as parameters are: runs in float64 draw the same, and noise of
    # 16 bits would never draw a class of a probability below 1 in 256.
    labels = jax.random.categorical(key, logits.astype(jnp.float32))
    return jnp.mean(cross_entropy(logits, labels))


def _evaluate(
    logits: Float[Array, "n outputs"],
    batch: Mapping[str, jax.Array],
    *,
    of_example: Loss,
    classes: int,
) -> dict[str, Array]:
    """Computes loss, and whether the label is not the first, nor among the first five."""
    _check(logits, batch, classes)
    labels = batch["label"]
    found = {"loss": _losses_of(of_example, logits, labels), "error": wrong_at(1, logits, labels)}
    return {**found, "error_top5": wrong_at(5, logits, labels)} if has_top5(classes) else found


def _summarize(sums: Mapping[str, np.ndarray], examples: int) -> dict[str, float]:
    percent = {key: 100.0 * float(sums[key]) / examples for key in sums if key != "loss"}
    return {"loss": float(sums["loss"]) / examples, **percent}


def _losses_of(
    of_example: Loss,
    logits: Float[Array, "n outputs"],
    targets: Int[Array, " n"] | Float[Array, "n classes"],
    **numbers: Float[Array, ""],
) -> Float[Array, " n"]:
    losses = of_example(logits, targets, **numbers)
    if getattr(losses, "shape", None) != targets.shape[:1]:
        shape = getattr(losses, "shape", type(losses).__name__)
        raise ConfigError(f"task.loss must give a loss for each of n examples [n], not {shape}")
    return losses


def _check(logits: Any, batch: Mapping[str, jax.Array], classes: int) -> None:
    """Checks what a network gives, as it is traced: in training it may be something else."""
    wrong = _wrong_outputs(logits, classes, batch["label"].shape[0])
    if wrong:
        raise ConfigError(f"the network {wrong}")


def _wrong_outputs(logits: Any, classes: int, images: int) -> str:
    """Says what is wrong with the outputs for so many images; "" if nothing is."""
    shape = getattr(logits, "shape", None)
    if shape and len(shape) == 2 and shape[0] == images and shape[1] >= classes:
        return ""
    found = f"a {type(logits).__name__}" if shape is None else f"outputs of shape {tuple(shape)}"
    return f"gives {found} for {pluralize(images, 'image')}; classification takes logits " + (
        f"({images}, {classes})"
    )
