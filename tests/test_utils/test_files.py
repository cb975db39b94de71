"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from small_disk import small_disk

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


def test_threads_that_write_one_folder_do_not_take_each_other_for_leftovers(tmp_path, monkeypatch):
    # Between the making of a temporary folder and its note, another thread looks for leftovers.
    make = files.tempfile.mkdtemp

    def slow(*args, **kwargs):
        made = make(*args, **kwargs)
        time.sleep(0.01)
        return made

    monkeypatch.setattr(files.tempfile, 'mkdtemp', slow)

    def write(number):
        with files.replaced_folder(tmp_path / 'set', keep=True) as temporary:
            (temporary / 'whole.txt').write_text(str(number))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, number) for number in range(8)]:
            done.result()
    assert names(tmp_path) == ['set'] and names(tmp_path / 'set') == ['whole.txt']


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


def test_leftovers_of_killed_programs_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    folder = tmp_path / f'.model.{dead.pid}.abcd1234.tmp'
    folder.mkdir()
    (folder / 'new').mkdir()
    gone = [tmp_path / f'.weights.{dead.pid}.tmp.pth', tmp_path / f'.last_checkpoint.{os.getpid()}.tmp']
    stay = [tmp_path / f'.weights.{os.getppid()}.tmp.pth', tmp_path / '.hidden', tmp_path / '.notes.12.txt']
    for path in gone + stay:
        path.touch()
    with files.replaced_file(tmp_path / 'other.txt') as temporary:
        temporary.touch()
        removed = files.clear_leftovers(tmp_path)
        assert temporary.exists()
    assert sorted(removed) == sorted([folder, *gone])
    assert names(tmp_path) == sorted(path.name for path in stay) + ['other.txt']


def test_a_replacement_that_still_runs_is_not_recovered(tmp_path):
    folder, work = tmp_path / 'model', tmp_path / f'.model.{os.getppid()}.abcd1234.tmp'
    (work / 'old').mkdir(parents=True)
    (work / 'new').mkdir()
    assert files.recover_folder(folder) is None and not folder.exists()
    work.rename(tmp_path / f'.model.{2**22 + 1}.abcd1234.tmp')  # No process has such a number.
    assert files.recover_folder(folder) == folder


@pytest.fixture(params=['full', 'read-only'])
def bad_disk(request, tmp_path):
    with small_disk(tmp_path / 'disk', request.param) as disk:
        yield disk


def save_torch(path):
    torch.save(dict(weight=torch.zeros(1_000_000)), path)


def save_safetensors(path):
    save_file(dict(weight=torch.zeros(1_000_000)), path)


@pytest.mark.parametrize('save', [save_torch, save_safetensors, lambda path: path.write_bytes(bytes(4_000_000))])
def test_a_full_or_read_only_disk_is_named_whatever_writes(bad_disk, save):
    before = names(bad_disk)
    message = f'cannot write {bad_disk}.*: (No space left|Read-only).* free; '
    with pytest.raises(OSError, match=message) as raised, files.replaced_file(bad_disk / 'weights.pth') as temporary:
        save(temporary)
    assert '\n' not in str(raised.value)
    assert names(bad_disk) == before
    with pytest.raises(OSError, match='cannot write .*disk'), files.replaced_folder(bad_disk / 'model') as folder:
        save(folder / 'weights.pth')
    assert names(bad_disk) == before


def test_torch_that_cannot_write_is_explained_without_a_disk_of_its_own(tmp_path, monkeypatch):
    error = RuntimeError('[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0')
    assert files.cannot_write(error, tmp_path / 'a.pth') is None  # There is room: something else is wrong.
    monkeypatch.setattr(files, '_why', lambda path: errno.ENOSPC)
    assert 'No space left on device' in str(files.cannot_write(error, tmp_path / 'a.pth'))
    assert files.cannot_write(RuntimeError('shapes do not fit'), tmp_path) is None


def test_a_folder_is_tried_before_it_is_needed(tmp_path, monkeypatch):
    files.check_writable(tmp_path / 'new' / 'run')
    assert names(tmp_path / 'new' / 'run') == []
    (tmp_path / 'file').touch()
    with pytest.raises(OSError):
        files.check_writable(tmp_path / 'file' / 'run')
