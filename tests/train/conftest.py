"""A run that nobody stopped, for the tests that stop, kill or move one."""

import pytest
from tiny_run import tiny_config

from lbsgd import train


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """The workdir of a run of `tiny_config()`."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train.run(tiny_config(), workdir).complete
    return workdir
