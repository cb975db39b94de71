"""Models in files and folders: all their tensors, whatever the shards, and indices that lie are refused."""

import json

import pytest
import torch
from pytorch_files import to_pytorch_files
from safetensors.torch import save_file

from mergemix_mm.engine.weights import StoredWeights

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


@pytest.mark.parametrize('safe', [True, False])
def test_folders_of_transformers_are_read_from_all_shards(tmp_path, safe):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    )
    model.save_pretrained(tmp_path / 'whole')
    model.save_pretrained(tmp_path / 'shards', max_shard_size=8000)
    for folder, sharded in (('whole', False), ('shards', True)):
        if not safe:
            to_pytorch_files(tmp_path / folder)
        weights = StoredWeights(tmp_path / folder)
        assert set(weights.tensors) == set(model.state_dict())
        assert all(torch.equal(weights.tensors[name].read(), one) for name, one in model.state_dict().items())
        assert (len(weights.files) > 2, weights.index is not None) == (sharded, sharded)


def test_folders_without_a_whole_model_are_refused(tmp_path):
    (tmp_path / 'adapter_model.safetensors').touch()
    with pytest.raises(ValueError, match=r'holds none of model.safetensors.*but: adapter_model.safetensors.*LoRA'):
        StoredWeights(tmp_path)


def test_unknown_and_missing_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file or folder'):
        StoredWeights(tmp_path / 'nothing')
    (tmp_path / 'a.onnx').touch()
    with pytest.raises(ValueError, match=r'a.onnx is of an unknown kind.*\.safetensors, \.pth'):
        StoredWeights(tmp_path / 'a.onnx')


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


SHARDS = {'a.safetensors': {'x': one(1)}, 'b.safetensors': {'y': one(2), 'z': one(3)}}


@pytest.mark.parametrize(
    'weight_map, message',
    [
        (dict(x='a.safetensors', y='b.safetensors'), 'not in the index are z'),
        (dict(x='b.safetensors', y='b.safetensors', z='b.safetensors'), 'it names are x; not in the index are none'),
        (dict(x='a.safetensors', y='a.safetensors', z='b.safetensors'), 'it names are y'),
        (dict(x='a.safetensors', y='b.safetensors', z='b.safetensors', w='b.safetensors'), 'it names are w'),
        (dict(x='a.safetensors', y='c.safetensors', z='d.safetensors'), r'not there: c\.safetensors, d\.safetensors'),
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


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards = {f'{number}.safetensors': {'b': one(number)} for number in (1, 2)}
    with pytest.raises(ValueError, match=r'2\.safetensors.*: b'):
        StoredWeights(write_shards(tmp_path, shards, dict(a='1.safetensors', b='2.safetensors')))
