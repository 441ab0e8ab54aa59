"""Your own images, a folder for each class: ResNet-18 at 64 pixels, on a laptop or a GPU.

    lbsgd train --config images --config.data.dir=DIR

DIR holds train/ and val/, each with a folder of images for every class; or the folders of classes
alone, with --config.data.validation_fraction=0.1. The recipe is that of configs/imagenette.py with
k=2 workers of n=32, eta = 0.025 (that is 0.1 for 256, by linear scaling), 30 epochs, x0.1 at one
half and five sixths of them, computed in float32. Larger minibatches than 256 begin with 5 epochs
of gradual warmup. Accumulation is automatic: as many steps as the memory asks for.

    batch=32..1024        kn; the default is 64
    model=resnet50        or any other of lbsgd.models.resnet
    size=224              pixels; the default is 64, which a laptop can do
    epochs=100            another length, decays in proportion
    smoke                 3 updates on random images at width 1/8 and 32 pixels
"""

import ml_collections

from lbsgd.run.recipes import Rows, select, set_epochs, set_smoke, sibling

ROWS: Rows = {
    "batch=": "batch_size",
    "model=": "model.name",
    "size=": "data.image_size",
    "epochs=": set_epochs,
    "smoke": set_smoke,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = sibling(__file__, "imagenette")
    config.batch_size = 64
    config.total_epochs = 30.0
    config.dtype = "float32"
    config.model.name = "resnet18"
    config.learning_rate.decay_epochs = (15.0, 25.0)
    config.data.image_size = 64
    config.log.every_steps = 1
    return select(config, arg, ROWS)
