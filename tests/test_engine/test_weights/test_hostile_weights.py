"""Weights of strangers: indices and headers that lie are refused, and no tensor is lost."""

import json
import os
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergemix_mm.engine.weights import StoredWeights, mix_files

INDEX = 'model.safetensors.index.json'


def write_shards(folder, shards, weight_map=None):
    """A folder of transformers: {path of a shard: its tensors}, and an index of them or the one given."""
    for name, tensors in shards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name)
    weight_map = weight_map or {key: name for name, tensors in shards.items() for key in tensors}
    text = weight_map if isinstance(weight_map, str) else json.dumps(dict(metadata={}, weight_map=weight_map))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_text(text)
    (folder / 'config.json').write_text('{}')
    return folder


def one(value):
    return torch.full((2, 3), float(value))


def test_shards_of_one_name_in_two_folders_are_both_mixed(tmp_path):
    shards = {'a/m.safetensors': {'x': one(1)}, 'b/m.safetensors': {'y': one(2)}}
    real = write_shards(tmp_path / 'real', shards)
    synthetic = write_shards(tmp_path / 'syn', {'s.safetensors': {'x': one(3), 'y': one(6)}})
    record = mix_files(StoredWeights(real), StoredWeights(synthetic), tmp_path / 'out', 0.5)
    found = {name: load_file(tmp_path / 'out' / name) for name in shards}
    assert torch.equal(found['a/m.safetensors']['x'], one(2)) and torch.equal(found['b/m.safetensors']['y'], one(4))
    assert set(StoredWeights(tmp_path / 'out').tensors) == {'x', 'y'} and record['mixed'] == 2
    assert set(record['sha256']['real']) == set(shards) and set(record['sha256']['synthetic']) == {'s.safetensors'}


@pytest.mark.parametrize(
    'shard',
    ['../out.safetensors', '/etc/out.safetensors', 'a/../../out.safetensors', '..\\out.safetensors', 'C:out.bin',
     'a\0b', '', '.', 'x' * 300, '..', '\ud800'],
)  # fmt: skip
def test_shards_that_leave_the_folder_are_refused(tmp_path, shard):
    folder = write_shards(tmp_path / 'model', {'a/m.safetensors': {'x': one(1)}}, {'x': shard})
    save_file({'x': one(1)}, tmp_path / 'out.safetensors')
    with pytest.raises(ValueError, match='names the shard .* not a place in its folder|is not an index') as caught:
        StoredWeights(folder)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


def test_links_out_of_the_folder_are_refused_but_for_those_of_the_hubs_cache(tmp_path):
    save_file({'x': one(1)}, tmp_path / 'out.safetensors')
    folder = write_shards(tmp_path / 'model', {}, {'x': 'm.safetensors'})
    (folder / 'm.safetensors').symlink_to(tmp_path / 'out.safetensors')
    with pytest.raises(ValueError, match=r'm\.safetensors, a link to a place outside'):
        StoredWeights(folder)
    (tmp_path / 'hub' / 'blobs').mkdir(parents=True)
    save_file({'x': one(1)}, tmp_path / 'hub' / 'blobs' / 'abc')
    cached = write_shards(tmp_path / 'hub' / 'snapshots' / 'main', {}, {'x': 'm.safetensors'})
    (cached / 'm.safetensors').symlink_to('../../blobs/abc')
    assert set(StoredWeights(cached).tensors) == {'x'}


def test_links_to_folders_are_not_copied(tmp_path):
    real = write_shards(tmp_path / 'real', {'m.safetensors': {'x': one(1)}})
    (real / 'loop').symlink_to('.')
    synthetic = write_shards(tmp_path / 'syn', {'m.safetensors': {'x': one(1)}})
    with pytest.raises(ValueError, match='loop is a link to a folder'):
        mix_files(StoredWeights(real), StoredWeights(synthetic), tmp_path / 'out', 0.5)
    assert not (tmp_path / 'out').exists()


SHARDS = {'a.safetensors': {'x': one(1)}, 'b.safetensors': {'y': one(2), 'z': one(3)}}


@pytest.mark.parametrize(
    'weight_map, message',
    [
        (dict(x='a.safetensors', y='b.safetensors'), 'not in the index are z'),
        (dict(x='b.safetensors', y='b.safetensors', z='b.safetensors'), 'it names are x; not in the index are none'),
        (dict(x='a.safetensors', y='a.safetensors', z='b.safetensors'), 'it names are y'),
        (dict(x='a.safetensors', y='b.safetensors', z='b.safetensors', w='b.safetensors'), 'it names are w'),
        (dict(x='a.safetensors', y='c.safetensors', z='b.safetensors'), r'not there: c\.safetensors'),
        (dict(x='a.safetensors', y=['b.safetensors']), 'not an index'),
        ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', 'x is there twice'),
        ('{"weight_map": {}}', 'not an index'),
        ('{"weight_map": ["a.safetensors"]}', 'not an index'),
        ('[' * 100000, 'not an index'),
    ],
)
def test_indices_that_do_not_fit_their_shards_are_refused(tmp_path, weight_map, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        StoredWeights(write_shards(tmp_path / 'model', SHARDS, weight_map))


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


def test_empty_tensors_are_kept(tmp_path):
    tensors = {'a': torch.empty(0, 3), 'b': one(1), 'c': torch.empty(2, 0)}
    save_file(tensors, tmp_path / 'a.safetensors')
    weights = StoredWeights(tmp_path / 'a.safetensors')
    assert {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()} == dict(a=(0, 3), b=(2, 3), c=(2, 0))
    (tmp_path / 'b.safetensors').write_bytes(
        header({'a': f32(0, 0, (0,)), 'b': f32(0, 4), 'c': f32(4, 4, (0, 5))}, b'abcd')
    )
    assert set(StoredWeights(tmp_path / 'b.safetensors').tensors) == {'a', 'b', 'c'}


def rewritten(path, change=lambda name, content: content, compression=zipfile.ZIP_STORED):
    """The archive of torch.save, with other contents of its files."""
    out = path.with_name('evil.pth')
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, 'w', compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return out


def test_archives_whose_tensors_reach_beyond_their_place_are_refused(tmp_path):
    torch.save({'x': one(1), 'y': one(2)}, tmp_path / 'a.pth')
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
