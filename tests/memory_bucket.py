"""Buckets of fsspec's memory file system, which this process alone sees, empty at the start."""

import itertools

from lbsgd.system.bucket import BucketPath

_numbers = itertools.count()


def new_bucket() -> BucketPath:
    return BucketPath(f"memory://bucket-{next(_numbers)}/runs")
