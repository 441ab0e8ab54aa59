"""Fewer examples to train on, as a function of how many there are only.

The examples that are used are those at places 0..M-1 of one keyed permutation of all N. It is the
same for all seeds, so that runs differ in what their seeds are for; fewer examples are a part of
more; and none of N has to be looked at. It is not stratified: the share of each class varies
hypergeometrically.
"""

import numpy as np

from lbsgd.data.order import permute, round_keys
from lbsgd.data.source import Source
from lbsgd.data.sources.subset import Subset
from lbsgd.system.errors import ConfigError


def take_examples(source: Source, count: int) -> Source:
    """Takes so many examples of a training set, in its order; 0 for all.

    Raises:
      ConfigError: it has fewer.
    """
    if not count:
        return source
    if count > len(source):
        raise ConfigError(
            f"data.train_examples={count}, but there are {len(source)}; set it to less, or to 0 "
            "for all"
        )
    keys = round_keys(0, 0, "train_examples")
    taken = np.sort(permute(np.arange(count, dtype=np.uint64), len(source), keys).astype(np.int64))
    note = f"{count:,} of {len(source):,} images are used"
    return Subset(source, taken, (*source.notes, note))
