"""Fine-tunes a pretrained network on your own images: ResNet-18 at 224 pixels.

    lbsgd train --config finetune --config.data.dir=DIR --config.init_from=FILE

FILE holds pretrained weights, as docs/finetune.md says: torchvision's or timm's, or those of a run,
whose network it has to be: --config.model.width=0.25 for one that was trained at a quarter width.
DIR holds train/ and val/, each with a folder of images for every class; or the folders of classes
alone, with --config.data.validation_fraction=0.1. The head of the pretrained network is replaced
by one for these classes; docs/finetune.md says what else there is to choose.

As is usual for fine-tuning: 10 epochs of k=2 workers of n=32, Nesterov momentum, a cosine from
eta = 0.01 (0.04 for 256, by linear scaling) after one epoch of warmup; ten times that for the head,
which alone starts from random weights; the augmentation that the network was trained with.

    all                   trains all parameters; the default
    head                  trains the head alone, at eta = 0.1 (a linear probe): all else is frozen,
                          statistics of batch norm too, and costs no gradient
    batch=32..1024        kn; the default is 64
    model=resnet50        or any other of lbsgd.models.resnet; of its own pretrained weights
    size=96               pixels; the default is 224
    epochs=30             another length
    smoke                 3 updates on random images at width 1/8 and 32 pixels

Expected: ResNet-18 at a quarter width, pretrained on five classes of Imagenette at 64 pixels (1,500
images, 40 epochs, 24.4% error there), on five other classes, 1,619 images: 5 epochs of
`finetune:size=64,epochs=5` took 134 s beside other work on 2 CPU cores, and ended at 33.9% error on
381 held-out images; the head alone at 42.5% (one seed each; docs/results/finetune.json).
"""

import ml_collections

from lbsgd.run.recipes import Rows, reset_unused, select, set_epochs, set_smoke, sibling

_HEAD_RATE = 10.0


def _train_all(config: ml_collections.ConfigDict, _: str = "") -> None:
    config.optimizer.freeze = ()
    config.optimizer.rate_multipliers = {"classifier": _HEAD_RATE}
    config.batch_norm.frozen_statistics = False


def _train_head(config: ml_collections.ConfigDict, _: str) -> None:
    config.optimizer.freeze = ("stem*", "stage*")
    config.batch_norm.frozen_statistics = True


def _set_smoke(config: ml_collections.ConfigDict, _: str) -> None:
    set_smoke(config)
    config.init_from = ""


ROWS: Rows = {
    "all": _train_all,
    "head": _train_head,
    "batch=": "batch_size",
    "model=": "model.name",
    "size=": "data.image_size",
    "epochs=": set_epochs,
    "smoke": _set_smoke,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = sibling(__file__, "images")
    config.total_epochs = 10.0
    config.label_smoothing = 0.0
    config.learning_rate.reference_learning_rate = 0.04
    config.learning_rate.decay = "cosine"
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.warmup_epochs = 1.0
    config.data.image_size = 224
    # Which is to be given: without it a run that forgot would train from random weights.
    config.init_from = "pretrained.safetensors"
    _train_all(config)
    reset_unused(config)
    return select(config, arg, ROWS)
