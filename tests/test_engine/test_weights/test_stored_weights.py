"""Tests of reading weights from disk: every kind of file gives the tensors that were saved, and others are refused."""

import json
import os
from collections import OrderedDict

import pytest
import torch
from mmengine.logging import HistoryBuffer
from pytorch_files import to_pytorch_files
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from mergemix_mm.engine.weights import StoredWeights, load_checkpoint
from mergemix_mm.engine.weights import files as module


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
        assert all(piece.ndim == 1 and piece.numel() <= module.PIECE for piece in pieces)
        assert [bit for piece in pieces for bit in bits(piece)] == bits(tensor), name


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, 'PIECE', 4)


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


def test_checkpoints_of_another_device_are_read(tmp_path):
    with FakeTensorMode(), skip_data(materialize_fake_tensors=True):
        torch.save(dict(a=torch.empty(3, device='cuda')), tmp_path / 'a.pth')
    assert 'cuda:0' in str((tmp_path / 'a.pth').read_bytes())
    check(StoredWeights(tmp_path / 'a.pth'), dict(a=torch.zeros(3)))


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
        check(weights, model.state_dict())
        assert (len(weights.files) > 2, weights.index is not None) == (sharded, sharded)


def test_a_missing_shard_is_named(tmp_path):
    index = dict(weight_map=dict(a='1.safetensors', b='2.safetensors', c='3.safetensors'))
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    save_file(dict(a=torch.ones(1)), tmp_path / '1.safetensors')
    with pytest.raises(FileNotFoundError, match='not there: 2.safetensors, 3.safetensors'):
        StoredWeights(tmp_path)
    for number in (2, 3):
        save_file(dict(b=torch.ones(1)), tmp_path / f'{number}.safetensors')
    with pytest.raises(ValueError, match='3.safetensors holds tensors that another shard holds as well: b'):
        StoredWeights(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text('[]')
    with pytest.raises(ValueError, match='is not an index of shards'):
        StoredWeights(tmp_path)


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


@pytest.mark.parametrize('cut', [0, 4, 40, -1])
def test_damaged_safetensors_are_refused(tmp_path, cut):
    path = tmp_path / 'a.safetensors'
    save_file(some_tensors(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        ValueError, match=r'a.safetensors (is not a safetensors file|has \d+ bytes, and \d+ by its header)'
    ):
        StoredWeights(path)


def test_safetensors_of_unknown_dtypes_are_refused(tmp_path):
    path = tmp_path / 'a.safetensors'
    header = json.dumps(dict(a=dict(dtype='F4', shape=[2], data_offsets=[0, 1]))).encode()
    path.write_bytes(len(header).to_bytes(8, 'little') + header + b'0')
    with pytest.raises(ValueError, match="dtype that is not known here: KeyError.'F4'"):
        StoredWeights(path)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ('ran',)


def test_checkpoints_that_run_code_are_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, extra=Dangerous()), 'a.pth')
    for read in (StoredWeights, load_checkpoint):
        with pytest.raises(ValueError, match='holds more than weights and logs'):
            read(tmp_path / 'a.pth')
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


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_file(some_tensors(), path)
    tensors = StoredWeights(path).tensors
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match='ends within a tensor'):
        [tensor.read() for tensor in tensors.values()]
