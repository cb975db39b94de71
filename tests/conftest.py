"""Keeps the tests apart from each other."""

import pytest

import mergemix_mm  # before MMPretrain's models, see mergemix_mm/upstream.py
import mergemix_mm.missing_ops  # noqa: F401 - MMDetection's models are imported, with or without compiled ops


def managed_classes(base):
    """``base`` and all classes that inherit from it."""
    yield base
    for child in base.__subclasses__():
        yield from managed_classes(child)


@pytest.fixture(autouse=True)
def forget_global_instances():
    """Forget MMEngine's global instances, of which a later Runner would take those of the same name.

    These are default scopes, visualizers, message hubs and loggers. Each class keeps its own instances.
    """
    yield
    from mmengine.utils import ManagerMixin

    for managed in managed_classes(ManagerMixin):
        managed._instance_dict.clear()


# Whole folders and files whose tests run programs, or train what configs say.
SLOW = ('test_tools/', 'test_projects/', 'test_docs.py', '_configs.py')


def pytest_collection_modifyitems(config, items):
    """Mark them as slow; single tests elsewhere carry the marker themselves."""
    for item in items:
        if any(part in item.nodeid for part in SLOW):
            item.add_marker(pytest.mark.slow)
    # With several workers the files with slow tests come first, so that no worker ends with one while the others wait.
    if hasattr(config, 'workerinput'):
        slow = {item.path for item in items if item.get_closest_marker('slow')}
        items.sort(key=lambda item: item.path not in slow)
