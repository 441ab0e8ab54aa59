"""lbsgd's own augmentation, by the short names that a config may give."""

from collections.abc import Mapping

OWN: Mapping[str, str] = {
    "rand_augment": "lbsgd.data.augmentation.policies:rand_augment",
    "trivial_augment": "lbsgd.data.augmentation.policies:trivial_augment",
    "progressive_resizing": ("lbsgd.data.augmentation.progressive_resizing:progressive_resizing"),
}
