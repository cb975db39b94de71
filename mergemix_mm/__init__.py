"""Importing this package registers its components in MMEngine's and MMPretrain's registries."""

import importlib.util

from . import moved  # noqa: F401
from .paths import config_path
from .version import __version__

__all__ = ['__version__', 'config_path']


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook that forbids the package
        return False


# Without OpenMMLab, `mergemix_mm.functional` still works. The packages are looked up rather than tried, so that an
# error inside them or inside the modules below is never taken for their absence.
if all(_is_installed(package) for package in ('mmengine', 'mmcv', 'mmpretrain')):
    # Before the first module of MMPretrain's models.
    if _is_installed('transformers'):
        from . import upstream  # noqa: F401

    from . import datasets, engine, evaluation, models, toy, visualization  # noqa: F401
