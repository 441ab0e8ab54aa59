"""Buckets for tests, each empty at the start.

They are of fsspec's memory file system, which this process alone sees. The tests of emulated
buckets run the others below a place in one of those, which `PLACE` says.
"""

import itertools
import os
import uuid

from lbsgd.system.bucket import BucketPath

PLACE = "LBSGD_TEST_BUCKET"
_numbers = itertools.count()


def new_bucket() -> BucketPath:
    place = os.environ.get(PLACE, "memory://bucket")
    return BucketPath(f"{place}/{uuid.uuid4().hex[:8]}-{next(_numbers)}/runs")
