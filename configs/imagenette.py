"""Imagenette (ten easy classes of ImageNet) with ResNet-50: ImageNet's pipeline in small.

    lbsgd train --config imagenette --config.data.dir=DIR

DIR holds train/ and val/ with a folder of JPEGs for each class, as fast.ai's imagenette2 (or -320)
unpacks. The recipe is that of Goyal et al. 2017 (configs/imagenet_goyal.py, with what it lists as
our choice) with k=8 workers of n=32, eta = 0.1, but 100 epochs, x0.1 at 40, 70 and 90, and label
smoothing 0.1.

    batch=64..2048        kn; the default is 256
    model=resnet18        or any other of lbsgd.models.resnet
    size=128              pixels; evaluation takes the centre of an image 8/7 as large
    epochs=40             another length, decays in proportion
    smoke                 3 updates on random images at width 1/8 and 32 pixels

lbsgd has not run this to the end.
"""

import ml_collections

from lbsgd.run.config import default_config
from lbsgd.run.recipes import Rows, select, set_epochs, set_smoke

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
    config.batch_size = 256
    config.worker_batch_size = 32
    config.total_epochs = 100.0
    config.accumulation_steps = 0
    config.label_smoothing = 0.1
    config.dtype = "bfloat16"
    config.model.name = "resnet50"
    config.learning_rate.reference_learning_rate = 0.1
    config.learning_rate.reference_batch_size = 256
    config.learning_rate.warmup_epochs = 5.0
    config.learning_rate.decay_epochs = (40.0, 70.0, 90.0)
    config.data.source = "folder"
    config.data.crop = "inception"
    config.data.image_size = 224
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.evaluation.every_epochs = 1.0
    config.checkpoint.every_epochs = 5.0
    config.log.every_steps = 10
    return select(config, arg, ROWS)
