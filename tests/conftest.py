"""Keeps the tests apart from each other."""

import pytest


@pytest.fixture(autouse=True)
def forget_default_scope():
    """A Runner leaves its default scope behind, in which later tests would look for their components."""
    yield
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()
