import pytest

pytest.register_assert_rewrite("storage.copy_contract")
