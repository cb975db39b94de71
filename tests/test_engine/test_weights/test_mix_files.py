"""Tests of mixing weights on disk: equal to mixing state dicts, in files of the same layout, whole or not at all."""

import hashlib
import json
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from limits import HANGS
from pytorch_files import to_pytorch_files
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mergemix_mm.engine.weights import StoredWeights, check_out, mix_files
from mergemix_mm.functional import mix_weights

SIZES = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


def save_llama(folder, seed, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)
    model.save_pretrained(folder, **options)
    return model.state_dict()


@pytest.fixture
def llamas(tmp_path):
    """The state dicts of two models that lie in folders beside OUT, in shards of 4 kB."""
    return [save_llama(tmp_path / name, seed, max_shard_size=4000) for seed, name in enumerate(('real', 'syn'))]


def mix(folder, *args, real='real', synthetic='syn', out='out', **kwargs):
    return mix_files(StoredWeights(folder / real), StoredWeights(folder / synthetic), folder / out, *args, **kwargs)


def same(found, expected):
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_sharded_folder_equals_the_mixed_state_dicts_in_the_same_files(llamas, tmp_path):
    from transformers import LlamaForCausalLM

    mix(tmp_path, 0.3)
    expected = mix_weights(*llamas, 0.3)
    assert same(LlamaForCausalLM.from_pretrained(tmp_path / 'out', dtype=torch.bfloat16).state_dict(), expected)
    shards = sorted(path.name for path in (tmp_path / 'real').glob('*.safetensors'))
    assert len(shards) > 2 and shards == sorted(path.name for path in (tmp_path / 'out').glob('*.safetensors'))
    for name in shards:
        found, real = load_file(tmp_path / 'out' / name), load_file(tmp_path / 'real' / name)
        assert set(found) == set(real)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_everything_but_weights_is_copied_from_real(llamas, tmp_path):
    real = tmp_path / 'real'
    for name in ('tokenizer.model', 'tokenizer_config.json'):
        (real / name).write_text(name)
        (tmp_path / 'syn' / name).write_text('other')
    (real / 'additional_chat_templates').mkdir()
    (real / 'additional_chat_templates' / 'rag.jinja').touch()
    for name in ('pytorch_model.bin', 'tf_model.h5', 'pytorch_model.bin.index.json', '.gitattributes'):
        (real / name).write_text('unmixed')
    (real / 'mix_weights.json').write_text('of an earlier mix')
    mix(tmp_path, 0.5)
    found = {str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    assert {name for name in found if not name.endswith('.safetensors')} == {
        'config.json',
        'generation_config.json',
        'tokenizer.model',
        'tokenizer_config.json',
        'additional_chat_templates/rag.jinja',
        'model.safetensors.index.json',
        'mix_weights.json',
    }
    assert (tmp_path / 'out' / 'tokenizer.model').read_text() == 'tokenizer.model'
    for name in ('model.safetensors.index.json', 'config.json'):
        assert (tmp_path / 'out' / name).read_text() == (real / name).read_text()


def test_the_record_tells_where_the_weights_come_from(llamas, tmp_path):
    record = mix(tmp_path, 0.25, 'mlp|self_attn', 'bias|down_proj')
    assert json.loads((tmp_path / 'out' / 'mix_weights.json').read_text()) == record
    assert (record['beta'], record['include'], record['exclude']) == (0.25, 'mlp|self_attn', 'bias|down_proj')
    assert (record['mixed'], record['copied']) == (2 * 6, len(llamas[0]) - 2 * 6)
    for key, name in dict(real='real', synthetic='syn').items():
        assert record[key] == str(tmp_path / name)
        files = (tmp_path / name).glob('*.safetensors')
        assert record['sha256'][key] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_names_that_are_not_included_are_those_of_real(llamas, tmp_path):
    mix(tmp_path, 0.5, 'layers', 'norm')
    found = {name: tensor.read() for name, tensor in StoredWeights(tmp_path / 'out').tensors.items()}
    expected = mix_weights(*llamas, 0.5, lambda name: 'layers' in name and 'norm' not in name)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(found['lm_head.weight'], llamas[0]['lm_head.weight'])


def test_progress_counts_all_bytes(llamas, tmp_path):
    counted = []
    mix(tmp_path, 0.5, progress=counted.append)
    assert sum(counted) == sum(tensor.nbytes for tensor in llamas[0].values())


def test_a_safetensors_file_keeps_its_metadata_and_has_the_record_beside_it(tmp_path):
    real, synthetic = (
        dict(b=torch.full((3,), value), a=torch.full((2, 2), value).half(), steps=torch.tensor(7))
        for value in (1.0, 3.0)
    )
    save_file(real, tmp_path / 'real.safetensors', dict(format='pt', trained='well'))
    torch.save(synthetic, tmp_path / 'syn.pth')  # The kind of file does not matter here.
    (tmp_path / 'out.safetensors.json').write_text('of an earlier mix')
    record = mix(tmp_path, 0.75, real='real.safetensors', synthetic='syn.pth', out='new/out.safetensors')
    assert json.loads((tmp_path / 'new' / 'out.safetensors.json').read_text()) == record
    assert same(
        load_file(tmp_path / 'new' / 'out.safetensors'),
        mix_weights(load_file(tmp_path / 'real.safetensors'), synthetic, 0.75),
    )
    with safe_open(tmp_path / 'new' / 'out.safetensors', framework='pt') as file:
        metadata = file.metadata()
    assert (metadata['format'], metadata['trained']) == ('pt', 'well')
    assert json.loads(metadata['mix_weights'])['beta'] == 0.75
    # Beginning at a multiple of 8, tensors can be mapped.
    length = int.from_bytes((tmp_path / 'new' / 'out.safetensors').read_bytes()[:8], 'little')
    assert length % 8 == 0


@pytest.mark.parametrize('mmap', [False, True])
def test_a_checkpoint_of_mmengine_becomes_one_without_the_state_of_its_training(tmp_path, mmap):
    from mmengine.runner import load_checkpoint

    weights = []
    for seed, name in enumerate(('real', 'syn')):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        )
        model[3].weight = model[2].weight
        weights.append(model.to(memory_format=torch.channels_last).state_dict())
        meta = dict(iter=3, dataset_meta=dict(classes=('cat', 'dog')))
        torch.save(dict(meta=meta, state_dict=weights[-1], optimizer=dict(a=torch.ones(3))), tmp_path / f'{name}.pth')
    mix(tmp_path, 0.3, real='real.pth', synthetic='syn.pth', out='out.pth')
    found = torch.load(tmp_path / 'out.pth', weights_only=True, mmap=mmap)
    assert same(found['state_dict'], mix_weights(*weights, 0.3))
    assert set(found) == {'meta', 'state_dict'}
    assert found['state_dict']._metadata == weights[0]._metadata
    assert found['meta']['dataset_meta'] == meta['dataset_meta'] and found['meta']['mix_weights']['beta'] == 0.3
    load_checkpoint(model, str(tmp_path / 'out.pth'), strict=True)
    assert torch.equal(model[3].weight, found['state_dict']['2.weight'])


def test_a_plain_state_dict_stays_one(tmp_path):
    for name, value in (('real', 1.0), ('syn', 3.0)):
        torch.save(OrderedDict(a=torch.full((2,), value)), tmp_path / f'{name}.pth')
    mix(tmp_path, 0.5, real='real.pth', synthetic='syn.pth', out='out.pth')
    assert {name: a.tolist() for name, a in torch.load(tmp_path / 'out.pth').items()} == dict(a=[2.0, 2.0])


def test_a_folder_of_pytorch_files_stays_one(tmp_path):
    from transformers import LlamaForCausalLM

    states = [save_llama(tmp_path / name, seed, max_shard_size=4000) for seed, name in enumerate(('real', 'syn'))]
    for name in ('real', 'syn'):
        to_pytorch_files(tmp_path / name)
    mix(tmp_path, 0.5)
    assert len(list((tmp_path / 'out').glob('*.bin'))) > 2 and not list((tmp_path / 'out').glob('*.safetensors'))
    found = LlamaForCausalLM.from_pretrained(tmp_path / 'out', dtype=torch.bfloat16).state_dict()
    assert same(found, mix_weights(*states, 0.5))


def test_all_mismatches_are_named_before_anything_is_written(tmp_path):
    save_file(dict(a=torch.ones(2), b=torch.ones(2), n=torch.tensor(1)), tmp_path / 'real.safetensors')
    save_file(dict(a=torch.ones(3), c=torch.ones(2), n=torch.tensor(2)), tmp_path / 'syn.safetensors')
    with pytest.raises(
        ValueError, match=r'(?s)4 problems.*c: only in syn.*n: int64.*a: float32 \[2\].*b: only in real'
    ) as caught:
        mix(tmp_path, 0.5, real='real.safetensors', synthetic='syn.safetensors', out='out.safetensors')
    assert str(caught.value).count('\n') == 4
    assert {path.name for path in tmp_path.iterdir()} == {'real.safetensors', 'syn.safetensors'}


def sharded(folder, **shards):
    """A folder with an index: path of a shard, without its suffix -> its tensors."""
    index = {}
    for name, tensors in shards.items():
        path = folder / f'{name.replace("_", "/")}.safetensors'
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: torch.full((2,), value) for key, value in tensors.items()}, path)
        index |= dict.fromkeys(tensors, str(path.relative_to(folder)))
    (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=index)))


def test_shards_of_one_name_in_two_folders_are_both_mixed(tmp_path):
    sharded(tmp_path / 'real', a_m=dict(x=1.0), b_m=dict(y=2.0))
    sharded(tmp_path / 'syn', s=dict(x=3.0, y=6.0))
    record = mix(tmp_path, 0.5)
    assert load_file(tmp_path / 'out' / 'a' / 'm.safetensors')['x'].tolist() == [2, 2]
    assert load_file(tmp_path / 'out' / 'b' / 'm.safetensors')['y'].tolist() == [4, 4]
    assert set(record['sha256']['real']) == {'a/m.safetensors', 'b/m.safetensors'}


def test_links_to_folders_are_not_copied(tmp_path):
    for name in ('real', 'syn'):
        sharded(tmp_path / name, m=dict(x=1.0))
    (tmp_path / 'real' / 'loop').symlink_to('.')
    with pytest.raises(ValueError, match='loop'):
        mix(tmp_path, 0.5)
    assert not (tmp_path / 'out').exists()


def interrupt_after(number):
    left = iter(range(number))

    def progress(_):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return progress


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_an_interrupted_run_leaves_what_was_there(llamas, tmp_path, kind):
    names = dict(real='real', synthetic='syn', out='out')
    if kind == 'file':
        for state, name in zip(llamas, ('real', 'syn')):
            save_file(state, tmp_path / f'{name}.safetensors')
        names = {key: f'{name}.safetensors' for key, name in names.items()}
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        mix(tmp_path, 0.5, progress=interrupt_after(5), **names)
    assert contents(tmp_path) == before
    mix(tmp_path, 0.5, **names)
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        mix(tmp_path, 0.2, progress=interrupt_after(5), **names)
    assert contents(tmp_path) == before and not [path for path in tmp_path.iterdir() if path.name.startswith('.')]
    mix(tmp_path, 0.2, **names)
    assert contents(tmp_path).keys() == before.keys() and contents(tmp_path) != before


KILLED = """
import os, signal, sys
from mergemix_mm.engine.weights import StoredWeights, mix_files
real, synthetic, *outs = sys.argv[1:]
for out in outs:
    if not os.fork():
        written = []
        def progress(number):
            written.append(number)
            if len(written) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        mix_files(StoredWeights(real), StoredWeights(synthetic), out, 0.2, progress=progress)
        os._exit(0)
    print(os.WTERMSIG(os.wait()[1]))
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_written_output(llamas, tmp_path):
    mix(tmp_path, 0.5, out='old')
    before = contents(tmp_path / 'old')
    paths = [str(tmp_path / name) for name in ('real', 'syn', 'new', 'old')]
    done = subprocess.run(
        [sys.executable, '-c', KILLED, *paths],
        capture_output=True,
        text=True,
        timeout=HANGS,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.split()[-2:] == [str(int(signal.SIGKILL))] * 2, done.stderr
    assert not (tmp_path / 'new').exists()
    assert contents(tmp_path / 'old') == before


def test_out_has_to_be_a_place_of_its_own_and_of_the_kind_of_real(llamas, tmp_path):
    folder, file = StoredWeights(tmp_path / 'real'), tmp_path / 'a.safetensors'
    save_file(llamas[0], file)
    single = StoredWeights(file)
    for out in (tmp_path / 'real', tmp_path / 'real' / 'mixed', tmp_path):
        with pytest.raises(ValueError, match='lie in one another'):
            check_out(out, folder)
    with pytest.raises(ValueError, match='a.safetensors lie in one another'):
        check_out(file, folder, single)
    with pytest.raises(ValueError, match='is a folder; name a folder'):
        check_out(tmp_path / 'out.safetensors', folder)
    with pytest.raises(ValueError, match=r'has to end in .safetensors'):
        check_out(tmp_path / 'out.pth', single)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'notes.txt').touch()
    with pytest.raises(FileExistsError, match='holds other files than a model'):
        mix(tmp_path, 0.5, out='other')
    (tmp_path / 'b.safetensors').mkdir()
    with pytest.raises(IsADirectoryError, match='name a file'):
        check_out(tmp_path / 'b.safetensors', single)
