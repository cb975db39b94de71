"""Checkpoints and annotations are read without running code in them, and written so that others can do so."""

import builtins
import io
import os
import pickle
import zipfile
from collections import OrderedDict

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint

from mergemix_mm.engine.weights import (
    CheckpointError,
    UntrustedCheckpointError,
    guarded_mmengine,
    load_checkpoint,
    plain,
    restored,
    safe_load,
)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ('ran',)


def with_pickle(path, code, protocol=b'\x80\x02'):
    """A zip of torch.save whose pickle is this code."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, 'w') as target:
        for name in source.namelist():
            target.writestr(name, protocol + code + b'.' if name.endswith('data.pkl') else source.read(name))
    return path


def history(values):
    buffer = HistoryBuffer()
    for value in values:
        buffer.update(value, 2)
    return buffer


def mmengine_content():
    """What the Runner of MMEngine saves, logs and scores as they come."""
    return dict(
        meta=dict(epoch=2, dataset_meta=ConfigDict(classes=('a', 'b'), palette=[(1, 2)]), mmcv_version='1.4'),
        state_dict=OrderedDict(weight=torch.arange(4.0)),
        message_hub=dict(
            log_scalars=OrderedDict({'train/loss': history([3.0, 1.0, 2.5])}),
            runtime_info=OrderedDict(best_score=np.float32(0.75), epoch=2, seen=np.arange(3, dtype='>i2')),
            resumed_keys={'train/loss': True},
        ),
    )


def assert_logs(content):
    hub = content['message_hub']
    buffer = hub['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer) and type(buffer.data[0]) is np.ndarray
    assert buffer.mean() == pytest.approx(6.5 / 6) and buffer.statistics('min') == 1 and buffer.current() == 2.5
    buffer.update(4.0)
    assert buffer.data[0].tolist() == [3.0, 1.0, 2.5, 4.0] and buffer.data[1].tolist() == [2, 2, 2, 1]
    assert hub['runtime_info']['best_score'] == 0.75 and hub['runtime_info']['seen'].tolist() == [0, 1, 2]
    assert content['meta']['dataset_meta'] == dict(classes=('a', 'b'), palette=[(1, 2)])
    assert torch.equal(content['state_dict']['weight'], torch.arange(4.0))


@pytest.mark.parametrize('zipped', [True, False])
def test_checkpoints_of_plain_mmengine_load_with_their_logs(tmp_path, zipped):
    torch.save(mmengine_content(), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    assert_logs(load_checkpoint(tmp_path / 'a.pth'))


def test_plain_checkpoints_need_no_allowed_class_and_give_the_logs_back(tmp_path):
    content = mmengine_content()
    content['state_dict']._metadata = dict(version=2)
    unknown = []
    torch.save(plain(content, unknown), tmp_path / 'a.pth')
    assert unknown == []
    found = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert found['state_dict']._metadata == dict(version=2) and type(found['meta']['dataset_meta']) is dict
    assert_logs(restored(found))
    assert isinstance(content['message_hub']['log_scalars']['train/loss'], HistoryBuffer)  # Untouched.


def test_what_is_not_plain_is_named_with_its_key():
    unknown = []
    content = dict(hub=dict(info=[1, Dangerous()]), when=np.datetime64('2020'))
    assert plain(content, unknown)['hub'] is content['hub']
    assert unknown[0].startswith('hub.info[1] (') and unknown[0].endswith('.Dangerous)')
    assert unknown[1] == 'when (numpy.datetime64)'


NUMBERS = ['f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', '?', 'c8', 'c16', '>f4', '>i8']


@pytest.mark.parametrize('dtype', NUMBERS)
def test_scalars_and_arrays_of_every_number_load(tmp_path, dtype):
    array = np.array([1, 0, 1], dtype)
    torch.save(dict(array=array, scalar=array[0]), tmp_path / 'a.pth')
    found = load_checkpoint(tmp_path / 'a.pth')
    assert type(found['array']) is np.ndarray and found['array'].dtype == array.dtype.newbyteorder('=')
    assert found['array'].tolist() == array.tolist() and found['scalar'] == 1
    assert isinstance(found['scalar'], np.generic)


def test_names_of_numpy_1_are_read(tmp_path):
    torch.save(np.float32(0.5), tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth') as file:
        code = next(file.read(name) for name in file.namelist() if name.endswith('data.pkl'))
    old = code.replace(b'numpy._core.', b'numpy.core.')[2:-1]
    assert old != code[2:-1] and load_checkpoint(with_pickle(tmp_path / 'b.pth', old)) == np.float32(0.5)


HISTORY = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
GETATTR = b'cbuiltins\ngetattr\n'
REBUILD = b'ctorch._tensor\n_rebuild_from_type_v2\n'


@pytest.mark.parametrize(
    'code, message',
    [
        # getattr(HistoryBuffer.mean, '__globals__'), step by step, and other names of it.
        (GETATTR + GETATTR + HISTORY + b'X\x04\x00\x00\x00mean\x86RX\x0b\x00\x00\x00__globals__\x86R', '__globals__'),
        (GETATTR + HISTORY + b'X\x09\x00\x00\x00__class__\x86R', '__class__'),
        (GETATTR + HISTORY + b'X\x13\x00\x00\x00register_statistics\x86R', 'register_statistics'),
        (GETATTR + b'ccollections\nOrderedDict\nX\x05\x00\x00\x00clear\x86R', 'clear'),
        # A function as data.
        (GETATTR, 'a function'),
        (b'cnumpy\nndarray\n', 'a class'),
        # Objects in arrays and in scalars.
        (b'cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x01\x00\x00\x00O\x85RN\x86R', "dtype 'O'"),
        (b'cnumpy\ndtype\nX\x05\x00\x00\x00f4,i4\x85R', 'not numbers'),
        (b'cbuiltins\neval\nX\x01\x00\x00\x001\x85R', 'eval'),
        (b'cos\nsystem\nX\x04\x00\x00\x00true\x85R', 'os.system'),
        (HISTORY + b')\x81}X\x0c\x00\x00\x00_log_historyK\x01sb', 'two rows of numbers'),
    ],
)
def test_hostile_pickles_are_refused_in_one_line(tmp_path, code, message):
    path = with_pickle(tmp_path / 'evil.pth', code)
    with pytest.raises(UntrustedCheckpointError, match='evil.pth holds more than weights') as caught:
        load_checkpoint(path)
    assert message in str(caught.value) and '--trust-checkpoint' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_no_stand_in_lets_a_file_write_into_a_module(tmp_path):
    # _rebuild_from_type_v2 sets attributes of what a function gives: with the raw getattr, of `builtins`.
    before = dict(vars(builtins))
    state = b'}X\x03\x00\x00\x00lenK\x01s'
    for function in (
        GETATTR + b'cmmengine.logging.history_buffer\nHistoryBuffer\n(' + HISTORY + b'X\x04\x00\x00\x00meant',
        b'cnumpy._core.multiarray\nscalar\n' + HISTORY + b'(cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R' + GETATTR + b't',
    ):
        path = with_pickle(tmp_path / 'evil.pth', REBUILD + b'(' + function + state + b'tR')
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    assert dict(vars(builtins)) == before
    assert HistoryBuffer._statistics_methods.keys() <= {'min', 'max', 'current', 'mean'}


def test_a_raw_getattr_that_somebody_else_allowed_does_not_win(tmp_path):
    torch.serialization.add_safe_globals([getattr])
    try:
        code = GETATTR + b'ccollections\nOrderedDict\nX\x05\x00\x00\x00clear\x86R'
        with pytest.raises(UntrustedCheckpointError, match='clear'):
            load_checkpoint(with_pickle(tmp_path / 'evil.pth', code))
        assert getattr in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()


def test_the_types_that_all_arrays_share_stay_as_they_are(tmp_path):
    # BUILD on numpy's one float64 dtype would turn its byte order for the whole process.
    code = b'cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x89tR'
    with_pickle(tmp_path / 'a.pth', code + b'(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb')
    assert load_checkpoint(tmp_path / 'a.pth') == np.dtype('>f8')
    assert np.dtype('f8').isnative and np.array(1.0).tobytes() == b'\x00\x00\x00\x00\x00\x00\xf0?'


def test_deep_nesting_and_damage_are_errors_of_one_line(tmp_path):
    with_pickle(tmp_path / 'deep.pth', b']' * 5000 + b'a' * 4999)
    (tmp_path / 'text.pth').write_text('no checkpoint')
    (tmp_path / 'empty.pth').write_bytes(b'')
    torch.save(dict(a=torch.ones(9)), tmp_path / 'cut.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'cut.pth').read_bytes()[:300])
    for name in ('deep', 'text', 'empty', 'cut'):
        with pytest.raises(CheckpointError, match=rf'{name}\.pth') as caught:
            load_checkpoint(tmp_path / f'{name}.pth')
        assert '\n' not in str(caught.value)


def test_mmengine_reads_safely_within_the_block_and_as_before_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    torch.save(dict(state_dict={}, extra=Dangerous()), 'evil.pth')
    torch.save(mmengine_content(), 'old.pth')
    original = mmengine_checkpoint._safe_torch_load
    with guarded_mmengine():
        assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'
        for scheme in ('', 'file://'):
            with pytest.raises((UntrustedCheckpointError, FileNotFoundError)):
                mmengine_checkpoint.CheckpointLoader.load_checkpoint(f'{scheme}evil.pth', 'cpu')
        with pytest.raises(Exception, match='weights'):
            torch.load('evil.pth', weights_only=False)  # Any other part of the program.
        assert_logs(mmengine_checkpoint.CheckpointLoader.load_checkpoint('old.pth', 'cpu'))
    assert not (tmp_path / 'ran').exists()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ
    assert mmengine_checkpoint._safe_torch_load is original
    with guarded_mmengine(trust=True):
        mmengine_checkpoint.CheckpointLoader.load_checkpoint('evil.pth', 'cpu')
    assert (tmp_path / 'ran').is_dir()


def test_downloaded_checkpoints_are_read_in_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    torch.save(mmengine_content(), tmp_path / 'hub' / 'checkpoints' / 'model.pth')
    with guarded_mmengine():
        assert_logs(mmengine_checkpoint.CheckpointLoader.load_checkpoint('https://none.example/model.pth', 'cpu'))


def test_downloads_that_run_code_are_refused_with_their_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    torch.save(dict(state_dict={}, extra=Dangerous()), tmp_path / 'hub' / 'checkpoints' / 'evil.pth')
    with guarded_mmengine(), pytest.raises(UntrustedCheckpointError, match='https://none.example/evil.pth .*mkdir'):
        mmengine_checkpoint.CheckpointLoader.load_checkpoint('https://none.example/evil.pth', 'cpu')
    assert not (tmp_path / 'ran').exists()


def test_open_files_can_be_read(tmp_path):
    buffer = io.BytesIO()
    torch.save(dict(a=np.float32(2)), buffer)
    buffer.seek(0)
    assert safe_load(buffer)['a'] == 2


DATA = dict(metainfo=dict(classes=('a',)), data_list=[dict(box=np.ones((2, 4), np.float32), score=np.float64(0.5))])


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_annotations_in_pickle_are_read_as_data(tmp_path, protocol):
    (tmp_path / 'ann.pkl').write_bytes(pickle.dumps(DATA, protocol))
    with guarded_mmengine():
        found = mmengine.load(tmp_path / 'ann.pkl')
    assert type(found['data_list'][0]['box']) is np.ndarray and found['data_list'][0]['box'].tolist() == [[1.0] * 4] * 2
    assert found['data_list'][0]['score'] == 0.5 and found['metainfo'] == DATA['metainfo']


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_annotations_that_run_code_are_refused(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'ann.pkl').write_bytes(pickle.dumps([Dangerous()], protocol))
    (tmp_path / 'ann.yaml').write_text('- !!python/object/apply:os.mkdir ["ran"]')
    with guarded_mmengine():
        for name, found in (('ann.pkl', 'mkdir'), ('ann.yaml', 'object/apply:os.mkdir')):
            with pytest.raises(
                UntrustedCheckpointError, match=rf'{name} holds more than plain data.*--trust'
            ) as caught:
                mmengine.load(tmp_path / name)
            assert found in str(caught.value) and '\n' not in str(caught.value)
        (tmp_path / 'ann.yml').write_text('a: [1, 2')
        with pytest.raises(CheckpointError, match=r'ann\.yml cannot be loaded.*not YAML'):
            mmengine.load(tmp_path / 'ann.yml')
    assert not (tmp_path / 'ran').exists()
    mmengine.load(tmp_path / 'ann.yaml')  # As MMEngine has it, outside of our tools.
    assert (tmp_path / 'ran').is_dir()


def test_a_pickle_cannot_change_what_all_are_read_with(tmp_path):
    for name in (b'numpy._core.multiarray\nscalar', b'numpy\nndarray', b'numpy\ndtype'):
        for state in (b'}U\x04callK\x01s', b'(N}U\x04callK\x01st', b'(N}U\x0c__setstate__K\x01st'):
            (tmp_path / 'ann.pkl').write_bytes(b'c' + name + b'\n' + state + b'b.')
            with guarded_mmengine(), pytest.raises(CheckpointError):
                mmengine.load(tmp_path / 'ann.pkl')
    test_annotations_in_pickle_are_read_as_data(tmp_path, 2)
