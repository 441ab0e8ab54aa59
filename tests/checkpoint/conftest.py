"""Two good checkpoints, for the tests that damage one of them."""

import shutil

import pytest

from lbsgd.checkpoint.saving import Checkpoints

# Their assertions say as much as those of tests.
pytest.register_assert_rewrite("checkpoint_folder", "two_checkpoints")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two good checkpoints: 1 and 2."""
    import two_checkpoints  # once its assertions are rewritten

    folder = tmp_path_factory.mktemp("pristine")
    checkpoints = Checkpoints(folder, 5, two_checkpoints.IDENTITY, say=pytest.fail)
    for update in (1, 2):
        checkpoints.save(update, two_checkpoints.state(update))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"
