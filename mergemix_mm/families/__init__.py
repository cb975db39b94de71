"""Families of vision-language models: one file declares all that the package knows about one of them."""

from importlib import import_module
from pkgutil import iter_modules

from .base import FAMILIES, Family, build_family, check_canvases, find_family

# A family is known as soon as its module is imported. These modules import torch only, not transformers.
for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')

__all__ = ['FAMILIES', 'Family', 'build_family', 'check_canvases', 'find_family']
