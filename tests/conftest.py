"""Keeps the tests apart from each other."""

import pytest

import mergemix_mm  # noqa: F401 - before MMPretrain's models, see mergemix_mm/upstream.py


@pytest.fixture(autouse=True)
def forget_default_scope():
    """A Runner leaves its default scope behind, in which later tests would look for their components."""
    yield
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()
