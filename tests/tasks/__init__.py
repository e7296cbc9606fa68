"""pytest explains the assertions of `tasks.data` too, although that is no test file."""

import pytest

pytest.register_assert_rewrite("tasks.data")
