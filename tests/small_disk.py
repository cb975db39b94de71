"""A disk of its own that is full, or that cannot be written to: root may do anything to a folder."""

import subprocess
from contextlib import contextmanager

import pytest

SIZE = 2 << 20


@contextmanager
def small_disk(folder, kind, free=SIZE // 4):
    """A disk at ``folder``, ``'full'`` but for some bytes or ``'read-only'``; skips where mounting is not allowed."""
    folder.mkdir()
    options = f'size={SIZE}' if kind == 'full' else f'ro,size={SIZE}'
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], capture_output=True)
    if done.returncode:
        pytest.skip('this user may not mount a disk')
    try:
        if kind == 'full':
            (folder / 'filler').write_bytes(bytes(SIZE - free))
        yield folder
    finally:
        # Torch's writer is open as long as its error is known.
        subprocess.run(['umount', '-l', folder], check=True)
