"""Keys of the data: where the examples come from, and what is seen of them."""

from typing import Any

from lbsgd.config.keys import ON, Condition, Key, Keys, Must, pair_within, whole
from lbsgd.data.augmentation.catalogue import OWN

_OF_TFDS = {"data.source": ("tfds",)}
_OF_SYNTHETIC = {"data.source": ("synthetic",)}
# Images whose files, or records, can be damaged.
_OF_FILES = {"data.source": ("packed", "folder", "tfds")}
# Evaluation crops too; what training makes of images it does not to those made on the devices.
_OF_LOADED = {"data.synthetic_on_device": (False,)}
# Crops that have a size of their own, of images of any size.
RESIZING_CROPS = ("inception", "random")
_OF_RESIZING = {"data.crop": RESIZING_CROPS}
_OF_INCEPTION_CROPS = {"data.crop": ("inception",), **_OF_LOADED}
_RESIZED = Condition(
    "data.crop='inception' or 'random', or data.source='synthetic'",
    lambda values: values["data.crop"] in RESIZING_CROPS or values["data.source"] == "synthetic",
)
_LISTED = Condition(
    "any source but synthetic, which has data.synthetic_examples",
    lambda values: values["data.source"] != "synthetic",
)
# s_l to s_h and r_1 to r_2 of Zhong et al. 2017.
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 1 / 0.3)
# 100 million pixels, as `decode.MAX_PIXELS` has it.
_MOST_SIDE = 10**4


def usual_short_side(image_size: int) -> int:
    """Returns the short side, in pixels, that evaluation resizes to: 256 for the centre 224."""
    return round(image_size * 256 / 224)


def _is_shape(shape: tuple[Any, ...]) -> bool:
    return not shape or (len(shape) == 3 and whole(shape) and min(shape) > 0)


_SOURCE: Keys = {
    "data.source": Key(
        "digits", "Where examples come from: packed, folder, tfds, npz, digits or synthetic."
    ),
    "data.dir": Key(
        "",
        "The folder in which the data lie.",
        machine=True,
        used_with={"data.source": ("packed", "folder", "tfds", "npz")},
    ),
    "data.validation_fraction": Key(
        0.0,
        "Where there is no validation set: the part of the images that is held out, by a hash of "
        "the seed and each one's name.",
        fraction=True,
        used_with={"data.source": ("folder", "npz")},
    ),
    "data.only_classes": Key(
        (),
        "The classes that are trained on and validated on, by name, or by range of labels as "
        "'0-4'; they are numbered anew from 0. () for all.",
        check=Must(
            "hold names of classes, or ranges of labels as ('0-4',)",
            lambda words: all(isinstance(word, str) and word for word in words),
        ),
        own_check=True,
    ),
    "data.train_examples": Key(
        0,
        "How many of the training examples are used. They are drawn once and for all, whatever "
        "the seed, and fewer are a part of more. 0 for all.",
        unit="examples",
        used_if=_LISTED,
    ),
    "data.left_out": Key(
        "unused",
        "What becomes of training examples that data.train_examples leaves out: they are unused, "
        "or join the validation set.",
        choices=("unused", "validation"),
        used_with={"data.train_examples": ON},
    ),
    "data.shuffle": Key(
        "global",
        "How examples are shuffled. global: one permutation of all of them an epoch. shards: the "
        "workers share them out once, at random, and each permutes its own part an epoch.",
        choices=("global", "shards"),
        used_with=_OF_LOADED,
        used_if=Condition(
            "more than one worker, so batch_size above worker_batch_size",
            lambda values: values["batch_size"] > values["worker_batch_size"],
        ),
    ),
    "data.tfds_name": Key(
        "imagenet2012", "The name of the dataset of tensorflow-datasets.", used_with=_OF_TFDS
    ),
    "data.tfds_train": Key("train", "The split of that dataset to train on.", used_with=_OF_TFDS),
    "data.tfds_validation": Key(
        "",
        "The split of that dataset to evaluate on; by default validation where there is one, else "
        "test.",
        used_with=_OF_TFDS,
    ),
    "data.synthetic_classes": Key(
        1000,
        "How many classes the synthetic images have.",
        positive=True,
        most=10**6,
        used_with=_OF_SYNTHETIC,
    ),
    "data.synthetic_examples": Key(
        1_281_167,
        "How many synthetic images to train on.",
        unit="examples",
        positive=True,
        used_with=_OF_SYNTHETIC,
    ),
    "data.synthetic_validation_examples": Key(
        50_000,
        "How many synthetic images to evaluate on.",
        unit="examples",
        positive=True,
        used_with=_OF_SYNTHETIC,
    ),
    "data.synthetic_on_device": Key(
        False,
        "Whether to train on one batch that is made on the devices and never loaded.",
        used_with=_OF_SYNTHETIC,
    ),
    "data.on_corrupt": Key(
        "error",
        "What happens to a corrupt image: error stops the run; skip names it in the workdir, and "
        "the next one takes its place.",
        choices=("error", "skip"),
        machine=True,
        used_with=_OF_FILES,
    ),
    "data.max_corrupt": Key(
        10,
        "How many different images may be skipped before the run stops.",
        unit="examples",
        machine=True,
        used_with={"data.on_corrupt": ("skip",)},
    ),
    "data.threads": Key(
        0, "How many threads load batches; 0 for one a core.", most=1000, machine=True
    ),
}

# What --explain takes for the data where they are not there.
_PLANNING: Keys = {
    "data.examples": Key(
        0,
        "How many training examples there are, for planning without the data; 0 for as many as the "
        "data have.",
        unit="examples",
        machine=True,
    ),
    "data.validation_examples": Key(
        0,
        "How many validation examples there are, for planning without the data; 0 for as many as "
        "the data have.",
        unit="examples",
        machine=True,
    ),
    "data.classes": Key(
        0,
        "How many classes there are, for planning without the data; 0 for as many as the data "
        "have.",
        most=10**7,
        machine=True,
    ),
    "data.image_shape": Key(
        (),
        "The (height, width, channels) of images, for planning without the data; () for those of "
        "the data.",
        unit="pixels",
        most=_MOST_SIDE,
        check=Must("be (height, width, channels)", _is_shape),
        machine=True,
    ),
}

_VIEW: Keys = {
    "data.crop": Key(
        "none",
        "What is seen of an image. none: it as it is, all of one shape. padded: zeros around it, "
        "and a random part of its size. inception: a random part, resized. random: a random part "
        "of data.image_size of the image whose short side is resized. With these two evaluation "
        "sees the centre.",
        choices=("none", "padded", "inception", "random"),
    ),
    "data.crop_padding": Key(
        4,
        "How many zeros a padded image has on each side before a random part is taken.",
        unit="pixels",
        most=_MOST_SIDE,
        used_with={"data.crop": ("padded",), **_OF_LOADED},
    ),
    "data.crop_area": Key(
        (0.08, 1.0),
        "The least and the greatest part of the image's area that a random crop takes.",
        check=pair_within(1e-6, 1.0),
        used_with=_OF_INCEPTION_CROPS,
    ),
    "data.crop_aspect": Key(
        (3 / 4, 4 / 3),
        "The least and the greatest width / height of a random crop.",
        check=pair_within(1e-3, 1e3),
        used_with=_OF_INCEPTION_CROPS,
    ),
    "data.crop_short_side": Key(
        0,
        "The short side that images are resized to, if they have another, before a random part of "
        "data.image_size is taken; 0 for 256/224 of data.image_size, as is usual.",
        unit="pixels",
        most=2 * _MOST_SIDE,
        used_with={"data.crop": ("random",), **_OF_LOADED},
        follows=lambda values: usual_short_side(values["data.image_size"]),
    ),
    "data.crop_antialias": Key(
        False,
        "Whether to resample with a filter as wide as the crop shrinks, as Pillow and torchvision "
        "have it; without it is faster (docs/data.md). Evaluation always has it.",
        used_with={**_OF_RESIZING, **_OF_LOADED},
    ),
    "data.image_size": Key(
        224,
        "The side of images after the crop, and of synthetic images.",
        unit="pixels",
        positive=True,
        most=_MOST_SIDE,
        used_if=_RESIZED,
    ),
    "data.evaluation_short_side": Key(
        0,
        "The short side that evaluation resizes images to before it takes the centre; 0 for "
        "256/224 of data.image_size, as is usual.",
        unit="pixels",
        most=2 * _MOST_SIDE,
        used_with=_OF_RESIZING,
        follows=lambda values: usual_short_side(values["data.image_size"]),
    ),
    "data.mean": Key(
        (0.5,), "What is subtracted from pixels / 255, one number a channel.", negative=True
    ),
    "data.std": Key(
        (0.5,), "What pixels / 255 less data.mean are divided by, one number a channel."
    ),
}

_AUGMENTATION: Keys = {
    "data.flip": Key(
        False, "Whether to flip images left to right, half of the time.", used_with=_OF_LOADED
    ),
    "data.color_jitter": Key(
        (0.0, 0.0, 0.0),
        "The strengths j of random brightness, contrast and saturation: factors within 1 - j and 1 "
        "+ j.",
        check=Must(
            "be three numbers from 0 to 1 (brightness, contrast, saturation)",
            lambda jitter: len(jitter) == 3 and max(jitter) <= 1,
        ),
        used_with=_OF_LOADED,
    ),
    "data.lighting": Key(
        0.0,
        "The standard deviation of PCA lighting; 0.1 in Krizhevsky et al. 2012.",
        used_with=_OF_LOADED,
    ),
    "data.augment": Key(
        "",
        'What else changes images in training, after crop, flip and colours; "" for nothing.',
        choices=("", *OWN),
        dotted=True,
        used_with=_OF_LOADED,
    ),
    "data.augment_options": Key(
        {},
        "Options of data.augment, by name.",
        used_with={"data.augment": ON, **_OF_LOADED},
    ),
    "data.mixup": Key(
        0.0,
        "The alpha of Beta(alpha, alpha), the weights of mixup; 0 for none. With cutmix, an "
        "example takes either.",
    ),
    "data.cutmix": Key(0.0, "The alpha of Beta(alpha, alpha), the areas of CutMix; 0 for none."),
    "data.running_mixup": Key(
        0.0,
        "The alpha of Beta(alpha, alpha), the weights of running mixup, which mixes each minibatch "
        "with the mixed one before; 0 for none. Not together with mixup or cutmix.",
    ),
    "data.erasing": Key(
        0.0,
        "The probability of random erasing: a box of 0, which is the colour data.mean.",
        check=Must("be a probability", lambda erasing: erasing <= 1),
    ),
    "data.erasing_area": Key(
        ERASED_AREA,
        "The least and the greatest part of the image's area that is erased.",
        check=pair_within(0.0, 1.0),
        used_with={"data.erasing": ON},
    ),
    "data.erasing_aspect": Key(
        ERASED_ASPECT,
        "The least and the greatest height / width of the erased box, uniformly drawn.",
        check=pair_within(1e-3, 1e3),
        used_with={"data.erasing": ON},
    ),
    "data.erasing_transpose": Key(
        False,
        "Whether height and width of the erased box are exchanged, half of the time.",
        used_with={"data.erasing": ON},
    ),
}

KEYS: Keys = {**_SOURCE, **_VIEW, **_AUGMENTATION, **_PLANNING}
