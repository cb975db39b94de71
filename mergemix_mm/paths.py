"""Where the configs of this package are, in the repository and in an installed wheel."""

import difflib
from pathlib import Path

from .moved import new_config

_PACKAGE = Path(__file__).resolve().parent
_SUGGESTIONS = 5


def _config_root() -> Path:
    """Find the folder of the configs: ``.mim/configs`` in a wheel, ``configs`` beside the package in the repository."""
    installed = _PACKAGE / '.mim' / 'configs'
    return installed if installed.is_dir() else _PACKAGE.parent / 'configs'


def config_path(relative: str) -> str:
    """Give the absolute path of one of this project's configs, to inherit from outside the repository.

    MMEngine resolves ``package::path`` for a fixed list of packages only, so a config elsewhere writes
    ``_base_ = __import__('mergemix_mm').config_path('mergemix/....py')``.

    Args:
        relative (str): Path below ``configs/``, such as ``'mergemix/deit-small_4xb256-mergemix-coslr-300e_in1k.py'``.

    Returns:
        str: The absolute path. A config that moved is found under its old path too, with a ``FutureWarning``.

    Raises:
        FileNotFoundError: If there is no such config; the message lists the closest ones.
    """
    root = _config_root()
    path = root / new_config(relative)
    if path.is_file():
        return str(path)
    known = sorted(found.relative_to(root).as_posix() for found in root.rglob('*.py'))
    close = difflib.get_close_matches(relative, known, n=_SUGGESTIONS, cutoff=0.4) or known[:_SUGGESTIONS]
    hint = f'Close matches: {", ".join(close)}.' if close else f'There is no config below {root}.'
    raise FileNotFoundError(f'config_path({relative!r}): there is no file {path}. {hint}')
