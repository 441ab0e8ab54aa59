"""Your own images, a folder for each class: ResNet-18 at 64 pixels, on a laptop or a GPU.

    python -m lbsgd.main --config configs/images.py --config.data.dir=DIR

DIR holds train/ and val/, each with a folder of images for every class. k=2 workers of n=32, eta =
0.025 (that is 0.1 for 256, by linear scaling), x0.1 at one half and five sixths of 30 epochs; crops
of random area and aspect, flip, label smoothing 0.1. Larger minibatches than 256 begin with 5
epochs of gradual warmup. Accumulation is automatic: as many steps as the memory asks for.

    batch=32..1024        kn; the default is 64
    model=resnet50        or any other of lbsgd.models.resnet
    size=224              pixels; the default is 64, which a laptop can do
    epochs=100            another length, decays in proportion
    smoke                 3 updates on random images at width 1/8 and 32 pixels

Three classes of 60 images ran to the end, 84 updates, in 27 minutes on 2 CPU cores that the tests
kept busy too.
"""

import ml_collections

from lbsgd.config import default_config
from lbsgd.recipes import Rows, select, set_epochs, set_smoke

ROWS: Rows = {
    "batch=": "batch_size",
    "model=": "model.name",
    "size=": "data.image_size",
    "epochs=": set_epochs,
    "smoke": set_smoke,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = default_config()
    config.batch_size = 64
    config.worker_batch_size = 32
    config.total_epochs = 30.0
    config.accumulation_steps = 0
    config.label_smoothing = 0.1
    config.model.name = "resnet18"
    config.learning_rate.reference_learning_rate = 0.1
    config.learning_rate.reference_batch_size = 256
    config.learning_rate.warmup_epochs = 5.0
    config.learning_rate.decay_epochs = (15.0, 25.0)
    config.data.source = "folder"
    config.data.crop = "inception"
    config.data.image_size = 64
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.evaluation.every_epochs = 1.0
    config.checkpoint.every_epochs = 5.0
    config.log.every_steps = 1
    return select(config, arg, ROWS)
