"""Safetensors and files of torch.save: they give what was saved, and those that lie are refused."""

import json
import os
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from torch import nn

from mergemix_mm.engine.weights import StoredWeights, files


def some_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return dict(
        matrix=torch.randn(5, 3, generator=generator),
        half=torch.randn(7, generator=generator).bfloat16(),
        codes=torch.randn(3, generator=generator).to(torch.float8_e4m3fn),
        mask=torch.tensor([True, False]),
        steps=torch.tensor(5),
        empty=torch.empty(0, 4),
    )


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


def check(weights, tensors):
    assert set(weights.tensors) == set(tensors)
    for name, tensor in tensors.items():
        stored = weights.tensors[name]
        assert (stored.shape, stored.dtype, stored.nbytes) == (tensor.shape, tensor.dtype, tensor.nbytes)
        assert stored.read().shape == tensor.shape and bits(stored.read()) == bits(tensor), name
        pieces = list(stored.pieces())
        assert all(piece.ndim == 1 and piece.numel() <= files.PIECE for piece in pieces)
        assert [bit for piece in pieces for bit in bits(piece)] == bits(tensor), name


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(files, 'PIECE', 4)


def test_safetensors_give_what_was_saved(tmp_path, small_pieces):
    save_file(some_tensors(), tmp_path / 'a.safetensors')
    weights = StoredWeights(tmp_path / 'a.safetensors')
    check(weights, some_tensors())
    assert weights.nbytes == sum(tensor.nbytes for tensor in some_tensors().values())


@pytest.mark.parametrize('nested', [False, True])
def test_torch_checkpoints_give_what_was_saved(tmp_path, small_pieces, nested):
    buffer = torch.arange(100.0)
    tensors = OrderedDict(
        some_tensors(),
        transposed=torch.randn(2, 3).t(),
        part=buffer[10:20],
        every_third=buffer[1:50:3],
        other_part=buffer[15:25],
        expanded=torch.ones(1, 3).expand(4, 3),
        last=torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        parameter=nn.Parameter(torch.ones(2)),
    )
    tensors._metadata = {'': dict(version=2)}
    logs = dict(loss=HistoryBuffer([1.0], [1]))
    content = dict(state_dict=tensors, optimizer=dict(steps=torch.ones(2)), message_hub=logs) if nested else tensors
    torch.save(content, tmp_path / 'a.pth')
    weights = StoredWeights(tmp_path / 'a.pth')
    check(weights, {name: tensor.detach() for name, tensor in tensors.items()})
    assert weights.versions == {'': dict(version=2)}


def header(entries, data=b'', length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def f32(begin, end, shape=(1,), dtype='F32'):
    return dict(dtype=dtype, shape=list(shape), data_offsets=[begin, end])


@pytest.mark.parametrize(
    'content, message',
    [
        (header({}, length=2**63), 'header of 9223372036854775808 bytes'),
        (header({}, length=5000), 'header of 5000 bytes'),
        (header(b'[1]'), 'not a safetensors'),
        (header(b'[' * 100000), 'not a safetensors'),
        (header({'a': f32(0, 4), 'b': f32(0, 4)}, b'\0' * 4), 'overlap'),
        (header({'a': f32(0, 8, (2,)), 'b': f32(4, 12, (2,))}, b'\0' * 12), 'overlap'),
        (header({'a': f32(4, 8)}, b'\0' * 8), 'something between'),
        (header({'a': f32(0, 4), 'b': f32(8, 12)}, b'\0' * 12), 'something between'),
        (header({'a': f32(0, 4)}, b'\0' * 8), 'bytes'),
        (header({'a': f32(0, 400, (100,))}, b'\0' * 8), 'bytes'),
        (header({'a': f32(-8, -4)}, b'\0' * 8), 'at least 0'),
        (header({'a': f32(4, 0)}, b'\0' * 4), 'contradicts|at least'),
        (header({'a': f32(0, 4, (-1, -1))}, b'\0' * 4), 'at least 0'),
        (header({'a': f32(0, 4, (True,))}, b'\0' * 4), 'at least 0'),
        (header({'a': f32(0, 4, (2,))}, b'\0' * 4), 'contradicts itself'),
        (header({'a': f32(0, 4, (2**40, 2**40))}, b'\0' * 4), 'not a safetensors|contradicts'),
        (header({'a': f32(0, 4, dtype='F4')}, b'\0' * 4), 'F4'),
        (header({'a': f32(0, 4, dtype=['F32'])}, b'\0' * 4), 'not a safetensors'),
        (header({'a': [1]}), 'not a safetensors'),
        (header({'a': f32(0, 4), '__metadata__': {'x': 1}}, b'\0' * 4), 'not texts'),
        (header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [0], '
                b'"data_offsets": [4, 4]}}', b'\0' * 4), 'a is there twice'),
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(tmp_path, content, message):
    (tmp_path / 'm.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        StoredWeights(tmp_path / 'm.safetensors')
    assert 'm.safetensors' in str(caught.value) and '\n' not in str(caught.value) and len(str(caught.value)) < 600


def test_an_empty_tensor_may_stand_anywhere(tmp_path):
    entries = {'a': f32(0, 0, (0,)), 'b': f32(0, 4), 'c': f32(4, 4, (0, 5))}
    (tmp_path / 'b.safetensors').write_bytes(header(entries, b'abcd'))
    assert set(StoredWeights(tmp_path / 'b.safetensors').tensors) == {'a', 'b', 'c'}


@pytest.mark.parametrize('cut', [0, 4, 40, -1])
def test_damaged_safetensors_are_refused(tmp_path, cut):
    path = tmp_path / 'a.safetensors'
    save_file(some_tensors(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        ValueError, match=r'a.safetensors (is not a safetensors file|has \d+ bytes, and \d+ by its header)'
    ):
        StoredWeights(path)


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_file(some_tensors(), path)
    tensors = StoredWeights(path).tensors
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match='ends within a tensor'):
        [tensor.read() for tensor in tensors.values()]


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ('ran',)


def test_checkpoints_that_run_code_are_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, extra=Dangerous()), 'a.pth')
    with pytest.raises(ValueError, match='holds more than weights and logs'):
        StoredWeights(tmp_path / 'a.pth')
    assert not (tmp_path / 'ran').exists()


def test_checkpoints_of_no_weights_are_refused(tmp_path):
    path = tmp_path / 'a.pth'
    for content, message in (
        (torch.ones(1), 'holds no state dict, but: FakeTensor'),
        (dict(epoch=3, weight=torch.ones(1)), 'entries that are not plain tensors: epoch'),
        # Torch 2.15 refuses to read one without memory.
        (dict(a=torch.eye(2).to_sparse()), 'entries that are not plain tensors: a|is not loaded|cannot be loaded'),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            StoredWeights(path)
    torch.save(dict(a=torch.ones(1)), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match='before torch 1.6'):
        StoredWeights(path)


def rewritten(path, change=lambda name, content: content, compression=zipfile.ZIP_STORED):
    """The archive of torch.save, with other contents of its files."""
    out = path.with_name('evil.pth')
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, 'w', compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return out


def test_archives_whose_tensors_reach_beyond_their_place_are_refused(tmp_path):
    torch.save({'x': torch.ones(2, 3), 'y': torch.ones(2, 3)}, tmp_path / 'a.pth')
    short = rewritten(tmp_path / 'a.pth', lambda name, content: content[:8] if name.endswith('data/0') else content)
    with pytest.raises(ValueError, match=r'evil\.pth: x reaches beyond its place'):
        StoredWeights(short)
    with pytest.raises(ValueError, match=r'evil\.pth is compressed'):
        StoredWeights(rewritten(tmp_path / 'a.pth', compression=zipfile.ZIP_DEFLATED))
    torch.save({'x': torch.ones(1).expand(1 << 40)}, tmp_path / 'huge.pth')
    with pytest.raises(ValueError, match=r'huge\.pth: x reaches'):
        StoredWeights(tmp_path / 'huge.pth')


def test_names_that_steer_the_terminal_are_shown(tmp_path):
    (tmp_path / 'a\x1b[2J.safetensors').write_bytes(b'no')
    with pytest.raises(ValueError) as caught:
        StoredWeights(tmp_path / 'a\x1b[2J.safetensors')
    assert os.fspath(tmp_path) in str(caught.value) and 'a\\x1b[2J.safetensors' in str(caught.value)
