"""Fewer examples to train on, as a function of how many there are only.

The examples that are used are those at places 0..M-1 of one keyed permutation of all N. It is the
same for all seeds, so that runs differ in what their seeds are for; fewer examples are a part of
more; and no label has to be known. It is not stratified: the share of each class varies
hypergeometrically.
"""

import numpy as np

from lbsgd.data.order import permute, round_keys
from lbsgd.data.source import Splits
from lbsgd.data.sources.subset import Joined, Subset
from lbsgd.system.errors import ConfigError


def take_examples(splits: Splits, count: int, validate_others: bool) -> Splits:
    """Takes so many examples of a training set, in its order.

    Args:
      validate_others: whether the others join the validation set; else they are left out.

    Raises:
      ConfigError: it has fewer.
    """
    train, validation = splits
    if count > len(train):
        raise ConfigError(
            f"data.train_examples={count}, but there are {len(train)}; set it to less, or to 0 for "
            "all"
        )
    keys = round_keys(0, 0, "train_examples")
    order = permute(np.arange(len(train), dtype=np.uint64), len(train), keys).astype(np.int64)
    taken, others = np.sort(order[:count]), np.sort(order[count:])
    note = f"{count:,} of {len(train):,} images are used"
    if validate_others and others.size:
        note += f", the other {len(others):,} to validate on"
        validation = Joined(validation, Subset(train, others, ()))
    return Splits(Subset(train, taken, (*train.notes, note)), validation)
