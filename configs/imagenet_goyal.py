"""ImageNet with ResNet-50 and -101 by the recipe of Goyal et al. 2017 (arXiv 1706.02677).

    lbsgd train --config imagenet_goyal --config.data.dir=DIR

With no argument: the paper's 8k recipe (k=256 workers of n=32, eta=3.2, gradual warmup), Table 1.
Arguments select other rows, `imagenet_goyal:batch=256`, several joined by commas. Top-1
validation error in %, mean and standard deviation of the paper's 5 runs, each run the median of its
last 5 epochs. On 256 P100 the paper's 8k run took one hour; lbsgd has not run these to the end.

    batch=64..65536            Figure 3: 256 23.60+-0.12  512 23.48+-0.09  1024 23.53+-0.08
                                         2048 23.49+-0.11  4096 23.56+-0.12  8192 23.74+-0.09
                                         16384 24.79+-0.27  32768 27.55+-0.28  65536 33.96+-0.80
    warmup=none|constant       Table 1 (8k): 24.84+-0.37, 25.88+-0.56
    rate=0.05|0.2              Table 2a: eta, for batch=256 23.92+-0.10, 23.68+-0.09;
                                         8k 24.27+-0.08, 24.05+-0.18
    scaling=none|sqrt          Table 2a (8k): 41.67+-0.10, 26.22+-0.03
    gamma=1                    Table 2b: batch=256 23.84+-0.18, 8k 24.11+-0.07
    model=resnet101            Table 2c: batch=256 22.08+-0.06, 8k 22.36+-0.09
    smoke                      3 updates on random images at width 1/8 and 32 pixels, 64 a batch

DIR is the data_dir of tensorflow-datasets with imagenet2012 as ArrayRecord (docs/data.md says how);
or class folders in train/ and val/, with --config.data.source=folder; or what `lbsgd prepare`
makes of either, or of ImageNet's downloads, with =packed, which loads fastest. Accumulation is
automatic: as many steps as the devices' memory asks for.

The paper's are: the network, its zero gammas and the classifier's N(0, 0.01); n=32 and batch norm
per worker, running averages x0.9; eta, linear scaling, warmup over 5 epochs and decays; 90 epochs;
Nesterov momentum 0.9; weight decay 1e-4, not of gamma and beta; gradients as means over kn; one
permutation an epoch; random area and aspect, flip; the median of the last 5 epochs. Our choice,
where the paper is silent or does otherwise:

    precision         the network computes in bfloat16, with float32 parameters, statistics, loss
                      and sums; the paper's in float32 (--config.dtype=float32)
    initialisation    kernels by He's rule over fan-out; the classifier's bias 0
    weight decay      not of the classifier's bias
    running averages  of the mean over all workers of their means and biased variances; the paper
                      does not say whose are evaluated (Caffe2 saves one worker's, and PyTorch's
                      are unbiased). epsilon 1e-5
    warmup            update 0 has eta = 0.1, update W the full rate
    minibatches       go on over the end of an epoch, so none is partial; epochs are rounded to
                      updates
    augmentation      8 to 100% of the area, width / height 3/4 to 4/3, as fb.resnet.torch is
                      remembered, without its colour jitter and PCA lighting, which the paper does
                      not mention; how a crop is decoded and resampled (docs/data.md)
    normalisation     by the usual means and standard deviations of ImageNet's channels
    evaluation        the centre 224 of a short side of 256, as is usual, every image once
"""

import ml_collections

from lbsgd.run.recipes import Rows, imagenet_resnet50, select, set_smoke


def _set_gamma(config: ml_collections.ConfigDict, _: str) -> None:
    config.model.zero_init_residual = False


ROWS: Rows = {
    "batch=": "batch_size",
    "warmup=": "learning_rate.warmup",
    "rate=": "learning_rate.reference_learning_rate",
    "scaling=": "learning_rate.scaling",
    "model=": "model.name",
    "gamma=1": _set_gamma,
    "smoke": set_smoke,
}


def get_config(arg: str = "batch=8192") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = imagenet_resnet50()
    config.batch_size = 8192
    config.worker_batch_size = 32
    config.total_epochs = 90.0
    config.learning_rate.reference_learning_rate = 0.1
    config.learning_rate.reference_batch_size = 256
    config.learning_rate.warmup_epochs = 5.0
    config.learning_rate.decay_epochs = (30.0, 60.0, 80.0)
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    return select(config, arg, ROWS)
