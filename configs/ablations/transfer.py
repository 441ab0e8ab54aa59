"""Fine-tunes the backbones of configs/ablations/transfer_backbones.py on other classes.

    lbsgd sweep run transfer --workdir runs/transfer --parallel 2 \\
        --config.data.dir=DIR

Is a backbone of a large minibatch as good as that of a small one? The last five classes of CIFAR-10
(dog, frog, horse, ship, truck), a tenth of their training images, 20 epochs of minibatches of 128,
with a head of its own. Seed i begins with the backbone of seed i, so that the spread over seeds is
that of both trainings.

    row                     starts from           trains
    random weights          none                  all, at eta = 0.1
    kn=32                   the small minibatch   all, at eta = 0.02, the head at 0.1
    kn=128, kn=256          a larger one          the same
    kn=32, head alone       the small one         a linear probe: the head, at 0.1
    kn=128, head alone      a larger one          the same
    kn=256, head alone      a larger one          the same

    n=128            backbones of kn=128 and 1024, in place of these
    digits           of kn=32 and 256; digits 5 to 9, 100 epochs of 100 of them, minibatches of 32
    backbones=DIR    the folder of the backbones' sweep; runs/transfer_backbones by default, with
                     _n=128 or _digits behind it for these

On 2 CPU cores 35 runs of 50,000 images each take some 20 minutes. docs/evidence.md has what came
of it (n = 5).
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.run.recipes import set_epochs, sibling
from lbsgd.system.errors import ConfigError

_CONFIGS = str(pathlib.Path(__file__).parent)
_SIZES = {"": (32, 128, 256), "n=128": (128, 1024), "digits": (32, 256)}
_HEAD = {
    "optimizer.freeze": ("stem*", "stage*"),
    "batch_norm.frozen_statistics": True,
}


def _parse(arg: str) -> tuple[str, str]:
    """Parses the variant of the backbones and their folder."""
    variant, folder = "", ""
    for part in filter(None, arg.split(",")):
        name, _, value = part.partition("=")
        if part in _SIZES:
            variant = part
        elif name == "backbones" and value:
            folder = value
        else:
            raise ConfigError(
                f"no variant {part!r}; there are n=128 and digits, and n=32 without one; and "
                "backbones=DIR"
            )
    return variant, folder or "_".join(filter(None, ("runs/transfer_backbones", variant)))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the recipe that starts from random weights; see the variants above."""
    of_digits = _parse(arg)[0] == "digits"
    config = sibling(_CONFIGS, "digits" if of_digits else "cifar10")
    config.batch_size = config.worker_batch_size
    set_epochs(config, "100" if of_digits else "20")
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.warmup_epochs = 1.0
    config.model.name = "cifar_resnet8"
    config.model.width = 0.25 if of_digits else 0.5
    config.data.only_classes = ("5-9",)
    config.data.train_examples = 100 if of_digits else 2500
    config.evaluation.every_epochs = 0.0
    config.checkpoint.every_epochs = 0.0
    config.log.every_steps = 20
    return config


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields random weights, and the backbones, fine-tuned and under a linear probe."""
    variant, folder = _parse(arg)
    tuned = {
        "learning_rate.reference_learning_rate": 0.02,
        "optimizer.rate_multipliers": {"classifier": 5.0},
    }
    yield "random weights", {}
    for end, changes in (("", {}), (", head alone", _HEAD)):
        for size in _SIZES[variant]:
            backbone = {"init_from": f"{folder}/kn={size}/seed_{{seed}}"}
            yield f"kn={size}{end}", {**backbone, **tuned, **changes}


def settings(arg: str = "") -> Settings:
    """Compares all with the backbone of the small minibatch."""
    small = next(name for name, _ in sweep(arg) if name.startswith("kn="))
    return Settings(baseline=small, columns=("learning_rate.reference_learning_rate",))
