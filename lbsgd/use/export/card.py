"""Writes the model card of an export: what it is, how it was trained, what came of it."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

import lbsgd
from lbsgd.data.facts import facts_of, given_facts
from lbsgd.data.source import Splits
from lbsgd.run.config import default_config, resolve, run_keys
from lbsgd.run.record.metrics import evaluations, read_whole_lines
from lbsgd.run.target import OF_AVERAGE
from lbsgd.system.bucket import LIKE_BUCKET
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath
from lbsgd.system.text import one_line, pluralize
from lbsgd.use.export.checking import Difference
from lbsgd.use.export.usage import snippets
from lbsgd.use.loading import Wanted
from lbsgd.use.model import Model
from lbsgd.use.stored import TRAINING_SET, Best, Stored
from lbsgd.weights.initial import source_of
from lbsgd.weights.keys import IDENTITY

# Classes whose names a reader still reads.
MOST_CLASSES = 20
NO_LICENCE = "not stated by the author"
_SOURCES = {
    "digits": "scikit-learn's digits",
    "folder": "a folder of images",
    "npz": "arrays of images",
    "packed": "packed images",
    "synthetic": "synthetic images",
}
_LEFT_OUT = "(a path, left out)"


class Exported(NamedTuple):
    """Describes a file that was exported.

    Attributes:
      format: by its name on the command line.
      file: its name.
      difference: found when it was read back.
    """

    format: str
    file: str
    difference: Difference


def model_card(
    stored: Stored,
    model: Model,
    wanted: Wanted,
    data: Splits | None,
    files: Sequence[Exported],
    checked_on: str,
    license_text: str,
) -> str:
    """Writes the card, in Markdown. No path and no name of a machine is in it.

    Args:
      wanted: how the network was loaded.
      data: of the run, if they could be opened.
      checked_on: which images the files were checked on.
      license_text: what the user says; "" for nothing.
    """
    config = model.config
    parts = [
        f"# {_text(config.model.name)} {_began(stored)} {_data_name(config)}",
        _summary(stored, model, wanted),
        "## Files",
        _files(files, checked_on),
        "## How to use it",
        *snippets(model, [one.format for one in files]),
        "## Data",
        _data(stored, model, data),
        "## Result",
        _result(stored, model, wanted),
        "## Training",
        _training(stored, model),
        "## Limitations",
        _limitations(stored, model),
        "## Licence",
        _text(license_text) or NO_LICENCE,
    ]
    return "\n\n".join(parts)


def _text(value: Any) -> str:
    """Writes a value in a line; what looks like a path is left out."""
    text = one_line(str(value))
    looks = text.startswith(("/", "~", "\\", "./", "../")) or text[1:3] in (":\\", ":/")
    return _LEFT_OUT if looks or LIKE_BUCKET.match(text) else text


def _public(value: Any) -> Any:
    """Replaces paths within a value of the config."""
    if isinstance(value, Mapping):
        return {str(name): _public(inside) for name, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(inside) for inside in value]
    return _text(value) if isinstance(value, str) else value


def _began(stored: Stored) -> str:
    """Says in the title whether the weights were drawn at random."""
    return "fine-tuned on" if IDENTITY in stored.manifest.identity else "trained on"


def _provenance(stored: Stored, model: Model) -> list[str]:
    """Says which weights the run began with, where it did not draw them."""
    if IDENTITY not in stored.manifest.identity:
        return []
    named = source_of(model.config)  # only a workdir tells; a path of a file leaves its name here
    name = pathlib.PurePosixPath(named).name if "." in pathlib.PurePosixPath(named).name else named
    what = f"`{_text(name)}`" if named else "other weights"
    averaged = ", the averaged weights of it" if model.config.init_ema else ""
    mark = _text(stored.manifest.identity[IDENTITY])
    return [f"- Fine-tuned from {what}{averaged} (`init_from`), fingerprint `{mark}`."]


def _summary(stored: Stored, model: Model, wanted: Wanted) -> str:
    parameters = sum(x.size for x in flatten_dict(model.variables["params"], sep="/").values())
    h, w, c = model.interface.image_shape
    resized = f", resized to a short side of {model.interface.short_side}, the centre of it"
    average = " (the moving average of the weights)" if wanted.weights == "average" else ""
    outputs = f"{pluralize(len(model.classes), 'class', 'classes')}: {_classes(model.classes)}"
    return "\n".join(
        [
            f"- Network: `{_text(model.config.model.name)}`, {parameters:,} parameters, after "
            f"{pluralize(model.update, 'update')}{average}.",
            *_provenance(stored, model),
            f"- Input: images of {h}x{w} pixels in {pluralize(c, 'channel')}"
            f"{resized if model.interface.short_side else ''}; (pixel / 255 - mean) / std, mean "
            f"{_numbers(model.interface.mean)}, std {_numbers(model.interface.std)}.",
            f"- Output: logits of {outputs}.",
            f"- Written by lbsgd {lbsgd.__version__}.",
        ]
    )


def _classes(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_CLASSES:,} more in `interface.json`"
    shown = ", ".join(one_line(name) for name in names[:MOST_CLASSES])
    return shown + (more if len(names) > MOST_CLASSES else "")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _files(files: Sequence[Exported], checked_on: str) -> str:
    rows = [
        f"| `{one.file}` | {one.format} | {one.difference.largest:.1e} | "
        f"{one.difference.tolerance:.1e} |"
        for one in files
    ]
    head = "| file | format | largest difference | what rounding explains |\n|---|---|---|---|"
    said = f"Each was read back; its outputs were compared with the network's on {checked_on}."
    return "\n".join([head, *rows, "", said])


def _data_name(config: Any) -> str:
    named = {**_SOURCES, "tfds": config.data.tfds_name}
    return _text(named.get(config.data.source) or config.data.source)


def _data(stored: Stored, model: Model, data: Splits | None) -> str:
    fingerprint = stored.manifest.identity.get(TRAINING_SET)
    facts = given_facts(model.config.data)
    if data and data.train.fingerprint == fingerprint:  # and not what lies there today
        facts = facts_of(data)
    lines = [f"- Source: {_data_name(model.config)}."]
    if facts:
        lines.append(
            f"- {pluralize(facts.examples, 'training example')}, "
            f"{pluralize(facts.validation_examples, 'validation example')}."
        )
    if fingerprint:
        lines.append(f"- Fingerprint of the training set: `{_text(fingerprint)}`.")
    return "\n".join([*lines, f"- {pluralize(len(model.classes), 'class', 'classes')}."])


# --- what came of the run ------------------------------------------------------------------------


def _result(stored: Stored, model: Model, wanted: Wanted) -> str:
    lines = [*_final(stored, wanted), *_at_update(stored, model, wanted)]
    lines = lines or ["- Nothing was recorded beside the checkpoint."]
    seed = f"- Seed {model.config.seed}. One run (n = 1): what another seed gives, it does not say."
    return "\n".join([*lines, seed])


def _final(stored: Stored, wanted: Wanted) -> list[str]:
    """Says what the run came to, if it has ended."""
    found = _json(stored.workdir.result) if stored.workdir else {}
    if not isinstance(found, dict) or not isinstance(found.get("metrics"), dict):
        return []
    ending = OF_AVERAGE if wanted.weights == "average" else ""
    metric = found["metrics"].get(f"{found.get('headline')}{ending}")
    if not isinstance(metric, dict) or not isinstance(metric.get("final"), (int, float)):
        return []
    count = found.get("final_evaluations")
    median = f"the median of its {count} last evaluations" if count != 1 else "its only evaluation"
    ended = "" if found.get("complete") else "; the run was stopped before its end"
    return [
        f"- The run: validation {_text(metric.get('words'))} {metric['final']:.4g}"
        f"{_text(metric.get('unit', ''))} after {found.get('updates')} updates, {median} in the "
        f"final 5 epochs (Goyal et al. 2017, section 5.1){ended}."
    ]


def _at_update(stored: Stored, model: Model, wanted: Wanted) -> list[str]:
    """Says what the evaluation of these very weights found, if there was one."""
    try:
        lines = read_whole_lines(stored.workdir.metrics)[0] if stored.workdir else []
    except (ConfigError, OSError):
        return []
    for line in evaluations(lines):
        if line["step"] == model.update:
            ending = OF_AVERAGE if wanted.weights == "average" else ""
            values = {
                name.removeprefix("val_").removesuffix(ending): value
                for name, value in line.items()
                if name.startswith("val_")
                and name.endswith(ending)
                and value is not None
                and (ending or not name.endswith(OF_AVERAGE))
            }
            said = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            return [f"- These weights, on the validation set: {said}."]
    return []


# --- how it was trained --------------------------------------------------------------------------


def _training(stored: Stored, model: Model) -> str:
    config = model.config
    lines = [
        f"- {pluralize(model.update, 'update')} of minibatches of {config.batch_size} = "
        f"{pluralize(config.batch_size // config.worker_batch_size, 'worker')} of "
        f"{config.worker_batch_size}, by {_text(config.optimizer.name)}, in {config.dtype}.",
        *_machines(stored),
        "",
        "Keys of the config that differ from lbsgd's defaults:",
        "",
        "```",
        *_differing(config),
        "```",
    ]
    return "\n".join(lines)


def _differing(config: Any) -> list[str]:
    """Lists what decides the run and is not at its default; where things lie is no part of it."""
    defaults = run_keys(resolve(default_config()))
    return [
        f"{key} = {json.dumps(_public(value))}"
        for key, value in run_keys(config).items()
        if value != defaults[key]
    ]


def _machines(stored: Stored) -> list[str]:
    """Says on which hardware and with which versions it was trained, without names of machines."""
    found = _json(stored.workdir.machine) if stored.workdir else None
    machines = [machine for machine in found or [] if isinstance(machine, dict)]
    lines = []
    for machine in machines:
        packages = machine.get("packages")
        versions = packages.items() if isinstance(packages, dict) else ()
        said = ", ".join(f"{_text(name)} {_text(v)}" for name, v in versions if v)
        commit = machine.get("git_commit")
        lines.append(
            f"- On {machine.get('devices')} x {_text(machine.get('device'))} (processes: "
            f"{machine.get('processes')}); Python {_text(machine.get('python'))}, {said}"
            + (f"; lbsgd's commit `{_text(commit)}`." if commit else ".")
        )
    return list(dict.fromkeys(lines))


def _json(path: AnyPath) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _limitations(stored: Stored, model: Model) -> str:
    lines = [
        "- The validation set may have guided choices of this training, its keys among them; where "
        "it did, the result is too good.",
        "- It knows the classes above alone, and gives each image one of them, whatever it shows. "
        "Its probabilities are a softmax, which nobody has calibrated.",
    ]
    if stored.best:
        lines.insert(0, _chosen(stored.best, model.update))
    if model.config.stop_at:
        lines.append(
            "- The run ended when its evaluation reached a target, which is a choice by the "
            "validation set too."
        )
    return "\n".join(lines)


def _chosen(best: Best, update: int) -> str:
    """Says how the checkpoint was chosen, and what was better and is gone."""
    first = best.best_update == update
    among = "the best" if first else "the best of those whose checkpoints are kept"
    better = f" The best of all was {best.best_value:.4g}, after update {best.best_update}."
    return (
        "- This checkpoint was chosen because its evaluation on the validation set "
        f"({best.metric.removeprefix('val_')} {best.value:.4g}) was {among}, so that evaluation is "
        f"too good as an estimate.{'' if first else better}"
    )
