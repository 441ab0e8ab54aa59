"""Evaluates a trained network on any data set that has its classes, each example exactly once."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.loaders import evaluation_loader
from lbsgd.data.pipeline import Batch, EvalBatches
from lbsgd.run.evaluation import Sums, add_sums, check_count, summarize
from lbsgd.run.sharing import SharedFunction
from lbsgd.step.evaluation import eval_step, mirrored
from lbsgd.system.devices import explain_out_of_memory, precision
from lbsgd.system.errors import ConfigError
from lbsgd.system.figures import save_figure
from lbsgd.system.files import AnyPath, any_path, replace_file, user_path
from lbsgd.system.text import short_repr
from lbsgd.tasks.build import build_task
from lbsgd.tasks.task import Task
from lbsgd.use.dataset import Dataset, open_dataset
from lbsgd.use.loading import OWN_STATISTICS, Wanted, load_stored
from lbsgd.use.model import Model
from lbsgd.use.pictures import confusion_picture, reliability_picture
from lbsgd.use.stored import Say, Stored
from lbsgd.use.tally import NO_CLASS, Tally
from lbsgd.workers.placement import Placement

# What is written; the pictures of a classification alone.
RESULT = "evaluation.json"
PICTURES = ("confusion.png", "reliability.png")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Holds what an evaluation found.

    Attributes:
      metrics: the numbers of the task, by name: of a classification "loss", and in percent "error"
        and, of more than 5 classes, "error_top5".
      examples: how many there were; those that could not be read are not counted.
      about: what was evaluated, and how, as JSON.
      tally: predictions by class, and calibration; None where the task is no classification.
      task: which says what the metrics are.
      classes: names, by label.
      folder: where it is written.
    """

    metrics: Mapping[str, float]
    examples: int
    about: Mapping[str, Any]
    tally: Tally | None
    task: Task
    classes: tuple[str, ...]
    folder: AnyPath

    @property
    def files(self) -> tuple[str, ...]:
        """Lists the files that are written: evaluation.json, and pictures of a classification."""
        return (RESULT, *(PICTURES if self.tally else ()))

    def to_json(self) -> dict[str, Any]:
        """Converts it to what evaluation.json holds."""
        found: dict[str, Any] = {"examples": self.examples, "metrics": dict(self.metrics)}
        found |= {"evaluated": dict(self.about)}
        if self.tally:
            tally = self.tally
            found |= {
                "expected_calibration_error": tally.ece,
                "calibration_bins": [one._asdict() for one in tally.bins],
                "by_class": tally.by_class(self.classes),
                "classes": list(self.classes),
                "confusion": tally.confusion.tolist(),
                "taken_for_no_class": tally.unassigned.tolist(),
            }
        return found


class _Batches(NamedTuple):
    """Says in what batches, and where, is evaluated."""

    placement: Placement
    batch_size: int


def evaluate(
    run: str | AnyPath,
    checkpoint: str | int = "newest",
    *,
    weights: str = "raw",
    statistics: str = "",
    flip: bool = False,
    keys: Mapping[str, Any] | None = None,
    devices: int = 0,
    allow_code: bool = False,
    out: str | AnyPath | None = None,
    say: Say = print,
) -> Evaluated:
    """Evaluates a run's network on its own validation set, or on other data.

    On the devices that the run was evaluated on last it gives the numbers of that evaluation, bit
    by bit; on others sums are rounded otherwise. evaluation.json and pictures are written into a
    folder of their own, and no file of the run is changed.

    Args:
      run, checkpoint, weights: as for `lbsgd.load`.
      statistics: "running" or "precise"; "" for those that the run itself is evaluated with.
      flip: whether to average the probabilities of each image and its mirror image.
      keys: values of the config to set, by dotted key: {"data.source": "folder", "data.dir": ...}
        for other data, whose classes are the network's, or some of them, in any order.
      devices: how many; 0 for as many as the run was evaluated on, or all where those are not here.
      allow_code: as for `lbsgd.load`; also the task and the loss are imported.
      out: where to write; by default a folder in `evaluations` of the workdir.
      say: takes a line.

    Raises:
      ConfigError: something the user can put right: no such run or data, classes that the network
        does not know, an image that cannot be read.
    """
    if jax.process_count() > 1:
        raise ConfigError("evaluation is of one process; start it once, not in several")
    given = dict(keys or {})
    wanted = Wanted(
        checkpoint,
        weights,
        statistics or OWN_STATISTICS,
        devices,
        given,
        allow_code,
        evaluation=True,
    )
    stored, model = load_stored(run, wanted, say)
    dataset = open_dataset(stored, model.config, list(given))
    for note in dataset.notes:
        say(note)
    batches = _batches(stored, model, "evaluation.batch_size" in given)
    corrupt = CorruptExamples(model.config.data.on_corrupt, model.config.data.max_corrupt)
    task = build_task(model.config, len(model.classes))
    sums, tally = _computed(model, task, dataset, batches, corrupt, flip)
    examples = check_count(sums, len(dataset.source), corrupt)
    about = _about(stored, model, wanted, dataset, batches, flip, sorted(corrupt.names))
    folder = _folder(out, stored, about)
    metrics = summarize(task, model.config.task.name, sums)
    found = Evaluated(metrics, examples, about, tally, task, model.classes, folder)
    _write(found)
    return found


def _batches(stored: Stored, model: Model, set_by_user: bool) -> _Batches:
    """Takes the batches of the run's own evaluation; on other devices, as many rows on each."""
    config, before = model.config, stored.evaluated_on
    n, devices = config.worker_batch_size, model.devices
    lanes = before.get("lanes", 1)
    batch_size = before.get("batch_size", n) * devices // before.get("devices", 1)
    if set_by_user:
        batch_size = config.evaluation.batch_size or batch_size
    same = before.get("devices") == devices
    group_size = config.batch_norm.synced_workers if same else 1
    placement = Placement(devices * lanes, n, devices, 1, lanes, group_size)
    return _Batches(placement, max(batch_size, 1))


def _computed(
    model: Model,
    task: Task,
    dataset: Dataset,
    batches: _Batches,
    corrupt: CorruptExamples,
    flip: bool,
) -> tuple[Sums, Tally | None]:
    """Computes the task's sums by the run's own step, and counts predictions beside."""
    config, placement = model.config, batches.placement
    loader = evaluation_loader(config, dataset.source, model.interface, corrupt, task.targets)
    variables = model.variables["params"], model.variables["batch_stats"]
    network = model.network.evaluate
    if flip:
        model.check_classifies("a flip")
        network = mirrored(network)
    step = SharedFunction(
        functools.partial(
            eval_step,
            network=network,
            preprocess=model.preprocess,
            evaluate=task.evaluate,
            placement=placement,
        ),
        placement.replicated,
    )
    remedy = f"set evaluation.batch_size to less than {batches.batch_size}"
    totals: Sums = {}
    with (
        precision(config.dtype),
        explain_out_of_memory("evaluation", remedy),
        contextlib.closing(iter(EvalBatches(loader, *batches))) as loaded,
    ):
        params, stats = jax.device_put(variables, placement.replicated)
        count = _Predictions(model, network, placement) if model.classifies else None
        for batch in loaded:
            totals = add_sums(totals, step(params, stats, batch))
            if count:
                count(params, stats, batch)
    return totals, count.tally if count else None


class _Predictions:
    """Counts the predictions of batches, by a program beside the one that sums up.

    That one is the run's own, and computes no more than the run does, so its bits are the run's.
    """

    def __init__(self, model: Model, network: Callable[..., Any], placement: Placement) -> None:
        self.tally = Tally(len(model.classes))
        predict = functools.partial(_predict, network=network, preprocess=model.preprocess)
        self._predict = SharedFunction(predict, placement.replicated)

    def __call__(self, params: Any, stats: Any, batch: Batch) -> None:
        predicted, confidence = self._predict(params, stats, batch["image"])
        labels, mask = (np.asarray(batch[key]).ravel() for key in ("label", "mask"))
        rows = np.asarray(predicted), np.asarray(confidence)
        self.tally.add(labels[mask], *(x[mask] for x in rows))


def _predict(
    params: Any,
    stats: Any,
    images: jax.Array,
    *,
    network: Callable[..., Any],
    preprocess: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Computes the largest output of each image `[..., h, w, c]`, and its probability."""
    logits = network(params, stats, preprocess(images.reshape((-1, *images.shape[-3:]))))
    # Of equals the lower, as the task has it; and none where they are no numbers.
    largest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    known = ~jnp.any(jnp.isnan(logits), axis=-1)
    predicted = jnp.where(known, largest, jnp.full_like(largest, NO_CLASS))
    return predicted, jnp.max(jax.nn.softmax(logits), axis=-1)


# --- what is written ---------------------------------------------------------------------------


def _about(
    stored: Stored,
    model: Model,
    wanted: Wanted,
    dataset: Dataset,
    batches: _Batches,
    flip: bool,
    corrupt: list[str],
) -> dict[str, Any]:
    """Says what was evaluated, and how."""
    return {
        "checkpoint": str(stored.path),
        "update": model.update,
        "weights": wanted.weights,
        "statistics": model.statistics,
        "flip": flip,
        "dataset": {
            "name": dataset.name,
            "own_validation_set": dataset.own,
            "fingerprint": dataset.source.fingerprint,
            "corrupt": corrupt,
        },
        "devices": model.devices,
        "platform": jax.default_backend(),
        "batch_size": batches.batch_size,
        "dtype": model.config.dtype,
    }


def _folder(out: str | AnyPath | None, stored: Stored, about: Mapping[str, Any]) -> AnyPath:
    """Finds where to write: what is evaluated again has the same folder."""
    if out:
        return user_path(out) if isinstance(out, str) else any_path(out)
    parts = [str(about["update"]), about["weights"], about["statistics"]]
    parts += ["flip"] * about["flip"]
    data = about["dataset"]["fingerprint"][:8].replace(" ", "_").replace("/", "_")
    around = stored.workdir.path if stored.workdir else stored.path.parent
    return around / "evaluations" / "-".join([*parts, data])


def _write(found: Evaluated) -> None:
    """Writes evaluation.json, and the pictures of a classification.

    Raises:
      ConfigError: they cannot be written.
    """
    folder = found.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / RESULT, json.dumps(found.to_json()) + "\n")
        if found.tally:
            title = (
                f"update {found.about['update']} on {short_repr(found.about['dataset']['name'])}"
            )
            drawn = (
                confusion_picture(found.tally, found.classes, title),
                reliability_picture(found.tally, title),
            )
            for name, figure in zip(PICTURES, drawn):
                save_figure(figure, folder / name)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); choose another by out, or "
            "--out"
        ) from error
