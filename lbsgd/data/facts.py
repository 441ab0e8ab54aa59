"""The facts that a plan needs of the data: how many examples and classes, of what shape."""

import dataclasses

import ml_collections

from lbsgd.data.keys import RESIZING_CROPS
from lbsgd.data.source import Splits
from lbsgd.system.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Facts:
    """Holds what is known of a training and a validation set.

    Attributes:
      examples: of the training set.
      validation_examples: of the validation set.
      classes: how many labels there are.
      image_shape: `(h, w, c)` of the images as they are stored; where they differ, of the first.
      fingerprint: of the training set; "" where nobody has opened it.
      class_names: by label; () where nobody has opened it.
      notes: what a person should know of the data, a line each.
    """

    examples: int
    validation_examples: int
    classes: int
    image_shape: tuple[int, ...]
    fingerprint: str = ""
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# Of tensorflow-datasets, as its catalogue has them; () where images differ in shape.
TFDS: dict[str, Facts] = {
    "imagenet2012": Facts(1_281_167, 50_000, 1000, ()),
    "imagenet_resized/64x64": Facts(1_281_167, 50_000, 1000, (64, 64, 3)),
    "imagenet_resized/32x32": Facts(1_281_167, 50_000, 1000, (32, 32, 3)),
    "imagenette/full-size-v2": Facts(9_469, 3_925, 10, ()),
    "imagenette/320px-v2": Facts(9_469, 3_925, 10, ()),
    "imagenette/160px-v2": Facts(9_469, 3_925, 10, ()),
    "cifar10": Facts(50_000, 10_000, 10, (32, 32, 3)),
    "cifar100": Facts(50_000, 10_000, 100, (32, 32, 3)),
    "mnist": Facts(60_000, 10_000, 10, (28, 28, 1)),
    "fashion_mnist": Facts(60_000, 10_000, 10, (28, 28, 1)),
    "kmnist": Facts(60_000, 10_000, 10, (28, 28, 1)),
    "svhn_cropped": Facts(73_257, 26_032, 10, (32, 32, 3)),
    "food101": Facts(75_750, 25_250, 101, ()),
    "oxford_iiit_pet": Facts(3_680, 3_669, 37, ()),
}
DIGITS = Facts(1_437, 360, 10, (8, 8, 1))


def facts_of(splits: Splits) -> Facts:
    """Gathers the facts of sets that are open."""
    train, validation = splits
    return Facts(
        len(train),
        len(validation),
        len(train.classes),
        train.image_shape,
        train.fingerprint,
        train.classes,
        (
            *(f"training: {note}" for note in train.notes),
            *(f"validation: {note}" for note in validation.notes),
        ),
    )


def given_facts(data: ml_collections.ConfigDict) -> Facts | None:
    """Takes the facts that follow from the config's `data` alone, without opening a file.

    The keys data.examples, data.validation_examples, data.classes and data.image_shape say what is
    not known; where they are set they count for more than what is.

    Returns:
      None if something is not known.
    """
    known = _known(data) or Facts(0, 0, 0, ())
    shape = tuple(data.image_shape) or known.image_shape
    if data.crop in RESIZING_CROPS:  # whatever the shape of the files is, the network sees a crop
        shape = shape or (data.image_size, data.image_size, 3)
    examples, validation = known.examples, known.validation_examples
    if data.train_examples and known.examples:
        examples = data.train_examples
        left_out = known.examples - examples
        validation += max(left_out, 0) if data.left_out == "validation" else 0
    found = Facts(
        data.examples or examples,
        data.validation_examples or validation,
        data.classes or known.classes,
        shape,
    )
    sizes = (found.examples, found.validation_examples, found.classes, found.image_shape)
    return found if all(sizes) else None


def _known(data: ml_collections.ConfigDict) -> Facts | None:
    known = _known_of_all(data)
    if known and data.only_classes:
        # How many examples are of these classes nobody knows, nor whether there are such classes.
        return dataclasses.replace(known, examples=0, validation_examples=0, classes=0)
    return known


def _known_of_all(data: ml_collections.ConfigDict) -> Facts | None:
    if data.source == "digits":
        return DIGITS
    if data.source == "synthetic":
        shape = (data.image_size, data.image_size, 3)
        sizes = (data.synthetic_examples, data.synthetic_validation_examples)
        return Facts(*sizes, data.synthetic_classes, shape)
    if data.source == "tfds" and data.tfds_train == "train" and not data.tfds_validation:
        return TFDS.get(data.tfds_name.partition(":")[0])
    return None


def check_given(data: ml_collections.ConfigDict, facts: Facts) -> None:
    """Holds what the config says of the data against what they are.

    Raises:
      ConfigError: they differ.
    """
    for key in ("examples", "validation_examples", "classes", "image_shape"):
        said, is_ = data[key], getattr(facts, key)
        if said and said != is_:
            raise ConfigError(f"data.{key}={said}, but the data have {is_}; leave it out")
