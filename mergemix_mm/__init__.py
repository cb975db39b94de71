"""Importing this package registers its components in MMEngine's and MMPretrain's registries."""

import importlib.util
import warnings

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
_missing = [package for package in ('mmengine', 'mmcv', 'mmpretrain') if not _is_installed(package)]
if _missing:
    # Those who only import `mergemix_mm.functional` see this as well, once: Python runs this file first and does not
    # tell it what is imported next. Silence here would leave a config without its components and without a reason.
    warnings.warn(
        f'mergemix_mm: {", ".join(_missing)} cannot be imported, so no component is registered. Only '
        'mergemix_mm.functional works, which needs nothing but torch.',
        stacklevel=2,
    )
else:
    # Before the first module of MMPretrain's models.
    if _is_installed('transformers'):
        from . import upstream  # noqa: F401

    from . import datasets, engine, evaluation, models, toy, visualization  # noqa: F401
