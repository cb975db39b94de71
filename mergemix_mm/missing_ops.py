"""Importing this module makes MMDetection importable if onedl-mmcv was installed without its compiled ops.

MMDetection's models import all of `mmcv.ops`, also for detectors that use none, such as DETR and MaskFormer, and that
import fails without the compiled module. With this module, only calling an op fails. If the ops are installed, it does
nothing. In a config:

    custom_imports = dict(imports=['mergemix_mm', 'mergemix_mm.missing_ops'], allow_failed_imports=False)
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import NoReturn

INSTALL = (
    'pip install wheel ninja psutil && '
    'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv==2.3.6'
)
_NAME = 'mmcv._ext'


class _MissingOps(ModuleType):
    """Stands for the compiled module. Its spec has no loader, by which :func:`has_ops` knows it."""

    def __init__(self) -> None:
        super().__init__(_NAME)
        self.__spec__ = ModuleSpec(_NAME, loader=None)

    def __getattr__(self, op: str) -> Callable[..., NoReturn]:
        # The import system asks for optional dunder names, and must not find them.
        if op.startswith('__'):
            raise AttributeError(op)

        def missing(*args, **kwargs) -> NoReturn:
            raise ImportError(
                f'{op} is a compiled op, and onedl-mmcv was installed without them. Build them with a C++ compiler and '
                f'torch 2.12 or older, in about 20 minutes: {INSTALL}'
            )

        return missing


def has_ops() -> bool:
    """Whether onedl-mmcv was installed with its compiled ops."""
    spec = find_spec(_NAME)
    return spec is not None and spec.loader is not None


if find_spec(_NAME) is None:
    sys.modules[_NAME] = _MissingOps()
