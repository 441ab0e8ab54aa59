"""Explains a run's data: how many examples there are, and what is seen of them."""

import ml_collections

from lbsgd.data.augmentation.named import Augmentation
from lbsgd.data.facts import Facts
from lbsgd.data.image_sizes import ImageSizes
from lbsgd.data.keys import RESIZING_CROPS, usual_short_side
from lbsgd.data.source import format_shape
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.text import decimal, pluralize

# Relative: a short side of evaluation that is as far from the usual one is told.
FAR = 0.05
_NOT_OPENED = "data: not opened; the numbers are those of the config, or known by the data's name"


def explain_data(
    data: ml_collections.ConfigDict, facts: Facts, image_shape: tuple[int, int, int]
) -> list[str]:
    """Says how much data there is, in lines.

    Args:
      data: the config's `data`.
      image_shape: `(h, w, c)` of what the network sees.
    """
    shape = "x".join(f"{side:,}" for side in image_shape)
    return [
        f"data: {data.source}, {facts.examples:,} training and {facts.validation_examples:,} "
        f"validation examples, {pluralize(facts.classes, 'class', 'classes')}, {shape}",
        "data: the network sees (pixel / 255 - mean) / std, mean {}, std {}".format(
            *(", ".join(f"{x:g}" for x in data[key]) for key in ("mean", "std"))
        ),
        *(f"data: {note}" for note in facts.notes),
        *([] if facts.fingerprint else [_NOT_OPENED]),
    ]


def explain_shuffle(data: ml_collections.ConfigDict, examples: int, workers: int) -> list[str]:
    """Says how examples are shuffled, where that is not as in the paper; a line, or none."""
    if data.shuffle == "global":
        return []
    least, longer = divmod(examples, workers)
    each = f"{least:,}" + f" or {least + 1:,}" * bool(longer)
    return [
        f"shuffle: each of {pluralize(workers, 'worker')} its own {each} examples, shared out once "
        "at random; Remark 4 of Goyal et al. has all workers share one permutation an epoch"
    ]


def explain_augmentation(data: ml_collections.ConfigDict) -> str:
    """Says how images are cropped and changed."""
    size = data.image_size
    if data.synthetic_on_device:
        return "augmentation: none; one random batch, made on the devices, is used again and again"
    crops = {
        "none": [],
        "padded": [f"random crops after {pluralize(data.crop_padding, 'zero')} on each side"],
        "inception": [
            "random crops of {:g} to {:g} of the area".format(*data.crop_area),
            "width / height {:.3g} to {:.3g}".format(*data.crop_aspect),
            f"resized to {size:,}" + ", antialiased" * data.crop_antialias,
        ],
        "random": [
            f"random {size:,} of a short side of {data.crop_short_side:,}"
            + ", antialiased" * data.crop_antialias
        ],
    }
    parts = crops[data.crop] + ["random flip"] * data.flip
    if any(data.color_jitter):
        parts.append("color jitter {:g}, {:g}, {:g}".format(*data.color_jitter))
    parts += [f"PCA lighting {data.lighting:g}"] if data.lighting else []
    parts += [_explain_named(data)] if data.augment else []
    named = {"mixup": "mixup", "cutmix": "CutMix", "running_mixup": "running mixup"}
    named |= {"erasing": "erasing"}
    parts += [f"{name} {data[key]:g}" for key, name in named.items() if data[key]]
    parts += [_explain_boxes(data)] if data.erasing else []
    text = f"augmentation: {', '.join(parts) or 'none'}"
    if data.crop in RESIZING_CROPS:
        side, usual = data.evaluation_short_side, usual_short_side(size)
        text += f"; evaluated on the centre {size:,} of a short side of {side:,}"
        if abs(side - usual) > FAR * usual:
            text += f" (256/224 of {size:,}, as is usual, would be {usual:,}: set it to 0)"
    return text


def _explain_boxes(data: ml_collections.ConfigDict) -> str:
    """Says which boxes random erasing erases."""
    turned = ", turned half of the time" * data.erasing_transpose
    limits = (*data.erasing_area, *data.erasing_aspect)
    return (
        "boxes of {:g} to {:g} of the area, height / width {:.3g} to {:.3g}".format(*limits)
        + turned
    )


def _explain_named(data: ml_collections.ConfigDict) -> str:
    options = ", ".join(
        f"{name}={value!r}" for name, value in data.augment_options.to_dict().items()
    )
    return f"{data.augment}({options})"


def explain_image_sizes(
    augmentation: Augmentation | None, sizes: ImageSizes, timeline: Timeline, total_updates: int
) -> list[str]:
    """Says how large an augmentation makes images, where that changes.

    Args:
      sizes: of the images, by update.
      total_updates: of the run.
    """
    if augmentation is None or not augmentation.resizes:
        return []
    parts = [
        f"{format_shape(size)} from update {first:,} (epoch {decimal(timeline.epoch(first))})"
        for first, _, size in sizes.between(0, total_updates)
    ]
    steps = pluralize(len(sizes.distinct), "size")
    whole = format_shape(augmentation.image_shape[:2])
    return [f"image size: {', '.join(parts)}: {steps}, each compiled once; evaluated at {whole}"]
