"""Keeps the tests apart from each other."""

import pytest

import mergemix_mm  # before MMPretrain's models, see mergemix_mm/upstream.py
import mergemix_mm.missing_ops  # noqa: F401 - MMDetection's models are imported, with or without compiled ops


@pytest.fixture(autouse=True)
def forget_default_scope():
    """A Runner leaves its default scope behind, in which later tests would look for their components."""
    yield
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()


# Whole folders and files whose tests run programs, or train what configs say.
SLOW = ('test_tools/', 'test_projects/', 'test_docs.py', '_configs.py')


def pytest_collection_modifyitems(items):
    """Mark them as slow; single tests elsewhere carry the marker themselves."""
    for item in items:
        if any(part in item.nodeid for part in SLOW):
            item.add_marker(pytest.mark.slow)
