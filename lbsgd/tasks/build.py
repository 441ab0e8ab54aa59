"""Builds the task that a config names, and checks it before anything is compiled."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lbsgd.config.dotted import Named, is_dotted, load
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr
from lbsgd.tasks.classification import Loss, classification
from lbsgd.tasks.losses import cross_entropy
from lbsgd.tasks.task import Task, means
from lbsgd.workers.reductions import Reduction

# Keys of a batch that are not a task's: its input, and what was drawn for each example.
NOT_TARGETS = frozenset({"image", "mask", "mix_share", "mix_box", "erase_box"}) | {
    *("running_share", "mixed_image", "mixed_target")
}
# Examples by which a task is checked.
PROBED = 13


def build_task(config: ml_collections.ConfigDict, classes: int) -> Task:
    """Builds the task of a resolved config, for data of so many classes.

    Raises:
      ConfigError: a task or a loss of one's own that cannot be had, or that the rest of the config
        does not fit.
    """
    c = config.task
    if not is_dotted(c.name):
        loss = _named_loss(c) if is_dotted(c.loss) else cross_entropy
        if config.data.running_mixup and is_dotted(c.loss):
            raise ConfigError(
                f"data.running_mixup mixes labels to distributions, and the loss {c.loss} takes "
                "labels; set data.running_mixup=0"
            )
        return classification(classes, loss=loss, label_smoothing=config.label_smoothing)
    named = load("task.name", c.name)
    task = named.call(c.options.to_dict(), classes=classes)
    if not isinstance(task, Task):
        raise named.error(f"must give a lbsgd.tasks.Task, not {type(task).__name__}")
    if (config.data.mixup or config.data.cutmix) and not task.mixes:
        raise named.error("does not know of mixed labels; set data.mixup=0 and data.cutmix=0")
    if config.data.running_mixup and task.distributions is None:
        raise named.error("has no `distributions` of its targets; set data.running_mixup=0")
    return _guarded(named, task)


def _named_loss(c: ml_collections.ConfigDict) -> Loss:
    named = load("task.loss", c.loss)
    bound = named.bind(c.loss_options.to_dict(), ("logits", "labels"))

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        losses: jax.Array = bound(logits, labels)
        if jnp.shape(losses) != labels.shape:
            raise named.error(
                f"gives an array of shape {jnp.shape(losses)} for {len(labels)} examples; it is to "
                "give the loss of each"
            )
        return losses

    return loss


def _guarded(named: Named, task: Task) -> Task:
    """Makes errors in its functions errors of their file, and line."""
    return dataclasses.replace(
        task,
        loss=named.guarded(task.loss),
        evaluate=named.guarded(task.evaluate),
        summarize=task.summarize if task.summarize is means else named.guarded(task.summarize),
        targets=named.guarded(task.targets),
        distributions=task.distributions and named.guarded(task.distributions),
        wrong_outputs=named.guarded(task.wrong_outputs),
        sampled_loss=task.sampled_loss and named.guarded(task.sampled_loss),
    )


class _Blame(NamedTuple):
    """Says whose the mistakes are: that of what a config names, else of lbsgd's own."""

    named: Named | None
    own: str

    def __call__(self, text: str) -> ConfigError:
        return self.named.error(text) if self.named else ConfigError(f"{self.own} {text}")


def check_task(
    task: Task,
    outputs: Any,
    image_shape: tuple[int, ...],
    *,
    named: Named | None = None,
    network: Named | None = None,
) -> None:
    """Checks, by tracing, what a task makes of a few images; nothing is computed.

    Args:
      outputs: shapes of the network's outputs for one image.
      image_shape: `(h, w, c)`.
      named, network: where the task and the network are from, if they are not lbsgd's own.

    Raises:
      ConfigError: something in it is not as `Task` says.
    """
    blame = _Blame(named, "the task")
    wrong = task.wrong_outputs(outputs)
    if wrong:
        raise _Blame(network, "the network")(wrong)
    # Several, and unlike any other side: of one, arrays [n, 1] and [n] would seem to fit.
    images = jax.ShapeDtypeStruct((PROBED, *image_shape), np.uint8)
    outputs = jax.tree.map(_of_several, outputs)
    targets = targets_of(task, np.zeros(PROBED, np.int32), named)
    batch = {"image": images, **_shapes(targets)}
    numbers = {name: jnp.zeros(()) for name in task.numbers}
    result = jax.eval_shape(lambda o, b, n: task.loss(o, b, **n), outputs, batch, numbers)
    _check_loss(task, result, blame)
    if task.sampled_loss:
        key = jax.eval_shape(lambda: jax.random.key(0))
        _check_number(jax.eval_shape(task.sampled_loss, outputs, key), "sampled_loss", blame)
    _check_evaluation(task, jax.eval_shape(lambda o, b: task.evaluate(o, b), outputs, batch), blame)


def _of_several(output: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    one, several = output.shape[:1] == (1,), (PROBED, *output.shape[1:])
    return jax.ShapeDtypeStruct(several if one else output.shape, output.dtype)


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in arrays.items()}


def _check_loss(task: Task, result: Any, blame: _Blame) -> None:
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        raise blame(f"must give (loss, metrics by name) by `loss`, not {short_repr(result)}")
    loss, metrics = result
    _check_number(loss, "loss", blame)
    if metrics.keys() != task.metrics.keys():
        raise blame(
            f"gives {_list(metrics)} as metrics of training, and declares {_list(task.metrics)}"
        )
    for name, value in metrics.items():
        how = task.metrics[name].reduction
        if not isinstance(how, Reduction) and getattr(value, "shape", None) != ():
            raise blame(f"gives {short_repr(value)} for metric {name!r}, which must be one number")


def _check_number(loss: Any, function: str, blame: _Blame) -> None:
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise blame(
            f"must give a loss that is one floating-point number by `{function}`, not "
            f"{short_repr(loss)}"
        )


def _check_evaluation(task: Task, found: Any, blame: _Blame) -> None:
    if not isinstance(found, Mapping):
        raise blame(f"must give arrays by name by `evaluate`, not {short_repr(found)}")
    plain = task.summarize is means
    for name, value in found.items():
        shape = getattr(value, "shape", ())
        if shape[:1] != (PROBED,) or (plain and len(shape) > 1):
            wanted = "[n]" if plain else "[n, ...]"
            raise blame(
                f"gives an array of shape {shape} for {name!r} of {PROBED} examples by `evaluate`, "
                f"which must be {wanted}, of each example"
            )
    if plain and found.keys() != task.validation.keys():
        missing = sorted(task.validation.keys() - found.keys())
        more = sorted(found.keys() - task.validation.keys())
        raise blame(
            f"evaluates {_list(found)}, and declares {_list(task.validation)}: "
            + "; ".join(
                f"{words} {', '.join(names)}"
                for words, names in (("evaluate", missing), ("declare in `validation`", more))
                if names
            )
        )


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"


def targets_of(task: Task, labels: np.ndarray, named: Named | None = None) -> dict[str, np.ndarray]:
    """Makes a task's targets of labels, int32 `[n]`, in types that devices have.

    Raises:
      ConfigError: they are no arrays of as many rows, or have a name that a batch has already.
    """
    blame, targets = _Blame(named, "the task"), task.targets(labels)
    if not isinstance(targets, Mapping) or not all(
        isinstance(x, np.ndarray) and x.shape[:1] == labels.shape for x in targets.values()
    ):
        raise blame(
            f"makes {short_repr(targets)} of {len(labels)} labels by `targets`; it is to make "
            "numpy arrays [n, ...] by name, of n labels"
        )
    taken = sorted(NOT_TARGETS & targets.keys())
    if taken:
        raise blame(f"makes a target called {taken[0]!r}, which a batch has already")
    # numpy's own are of 64 bits, which JAX would narrow itself, from 0.11 on with a warning.
    return {
        key: x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
        for key, x in targets.items()
    }
