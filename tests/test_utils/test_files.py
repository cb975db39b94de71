"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from mergemix_mm.utils import files


class Stop(BaseException):
    """What a kill is to the code that it hits."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / 'new' / 'result.json'
    files.write_json(path, dict(value=1))
    files.write_json(path, dict(value=2))
    assert json.loads(path.read_text()) == dict(value=2)
    assert names(path.parent) == ['result.json']


@pytest.mark.parametrize('error', [ValueError, Stop])
def test_a_file_whose_writer_stops_stays_as_it_was(tmp_path, error):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'old')
    with pytest.raises(error), files.replaced_file(path) as temporary:
        temporary.write_bytes(b'half')
        assert temporary.suffix == '.pth'
        raise error
    assert path.read_bytes() == b'old'
    assert names(tmp_path) == ['weights.pth']


def test_numbers_that_json_does_not_know_leave_the_file(tmp_path):
    path = tmp_path / 'result.json'
    files.write_json(path, dict(value=1))
    with pytest.raises(ValueError):
        files.write_json(path, dict(value=float('nan')))
    assert json.loads(path.read_text()) == dict(value=1)


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / 'model'
    for text in ('old', 'new'):
        with files.replaced_folder(folder) as temporary:
            (temporary / f'{text}.txt').write_text(text)
    assert names(folder) == ['new.txt']
    assert names(tmp_path) == ['model']
    with pytest.raises(Stop), files.replaced_folder(folder) as temporary:
        (temporary / 'half.txt').write_text('half')
        raise Stop
    assert names(folder) == ['new.txt']
    assert names(tmp_path) == ['model']


def test_a_folder_that_another_process_made_is_kept_on_demand(tmp_path):
    folder = tmp_path / 'set'
    with files.replaced_folder(folder, keep=True) as temporary:
        (temporary / 'mine.txt').touch()
        folder.mkdir()
        (folder / 'theirs.txt').touch()
    assert names(folder) == ['theirs.txt']
    assert names(tmp_path) == ['set']


@pytest.mark.slow
def test_a_kill_between_the_two_renames_is_repaired_at_the_next_start(tmp_path):
    folder = tmp_path / 'model'
    folder.mkdir()
    (folder / 'old.txt').touch()
    script = f"""
import os, signal
from pathlib import Path
from mergemix_mm.utils import files
rename, calls = Path.rename, []
def count(self, target):
    calls.append(self)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = count
with files.replaced_folder({str(folder)!r}) as temporary:
    (temporary / 'new.txt').touch()
"""
    done = subprocess.run([sys.executable, '-c', script])
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert files.recover_folder(folder) == folder
    assert names(folder) == ['new.txt']
    assert names(tmp_path) == ['model']
    assert files.recover_folder(folder) is None


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
def test_a_place_that_cannot_be_written_to_is_named_with_its_free_space(tmp_path, number):
    path = tmp_path / 'weights.pth'
    with pytest.raises(OSError) as raised, files.replaced_file(path):
        raise OSError(number, os.strerror(number))
    assert raised.value.errno == number
    message = str(raised.value)
    assert str(path) in message and 'GB free' in message and '\n' not in message
