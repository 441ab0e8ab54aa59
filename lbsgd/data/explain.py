"""Explains a run's data: how many examples there are, and what is seen of them."""

import ml_collections

from lbsgd.data.facts import Facts
from lbsgd.data.keys import usual_short_side
from lbsgd.system.text import pluralize

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
        *(f"data: {note}" for note in facts.notes),
        *([] if facts.fingerprint else [_NOT_OPENED]),
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
    }
    parts = crops[data.crop] + ["random flip"] * data.flip
    if any(data.color_jitter):
        parts.append("color jitter {:g}, {:g}, {:g}".format(*data.color_jitter))
    named = {"lighting": "PCA lighting", "mixup": "mixup", "cutmix": "CutMix", "erasing": "erasing"}
    parts += [f"{name} {data[key]:g}" for key, name in named.items() if data[key]]
    text = f"augmentation: {', '.join(parts) or 'none'}"
    if data.crop == "inception":
        side, usual = data.evaluation_short_side, usual_short_side(size)
        text += f"; evaluated on the centre {size:,} of a short side of {side:,}"
        if abs(side - usual) > FAR * usual:
            text += f" (256/224 of {size:,}, as is usual, would be {usual:,}: set it to 0)"
    return text
