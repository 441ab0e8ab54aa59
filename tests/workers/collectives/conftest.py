"""What the tests of collectives have in common."""

import pytest

# Its assertions say as much as those of tests.
pytest.register_assert_rewrite("ranks")
