import json
from functools import partial

import pytest
import tiny_vlms
import torch
from safetensors.torch import load_file, save_file

from mergemix_mm.families import build_family
from mergemix_mm.models.precision import widen_trained
from mergemix_mm.models.vlms import HFVisionLanguageModel


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_a_saved_model_reloads_in_plain_transformers(make, batch_of, tmp_path, family):
    from transformers import AutoModelForImageTextToText

    vlm = make(family).eval()
    batch = batch_of(family, labels=False)
    expected = vlm.model(**batch).logits
    vlm.save_pretrained(tmp_path / 'model')
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / 'model').eval()
    build_family(plain)  # Mends the positions of SmolVLM's patches under transformers 4.
    assert torch.equal(plain(**batch).logits, expected)
    again = HFVisionLanguageModel(pretrained=str(tmp_path / 'model')).eval()
    assert torch.equal(again.hidden(batch), vlm.hidden(batch))
    assert [path.name for path in tmp_path.iterdir()] == ['model']


def stored(folder):
    tensors = load_file(folder / 'model.safetensors')
    return {value.dtype for value in tensors.values() if value.is_floating_point()}


def dtypes_of(content):
    """What a config says, in all its parts."""
    found = {value for key, value in content.items() if key in ('dtype', 'torch_dtype')}
    return found.union(*(dtypes_of(value) for value in content.values() if isinstance(value, dict)))


def test_weights_that_trained_in_float32_are_kept_on_demand(make, tmp_path):
    vlm = make(dtype='bfloat16', trainable=['projector'])
    widen_trained(vlm.parameters())
    trained = vlm.model.model.multi_modal_projector.linear_1.weight
    trained.data.add_(1e-6)
    vlm.save_pretrained(tmp_path / 'model', dtype='float32')
    assert stored(tmp_path / 'model') == {torch.float32}
    assert dtypes_of(json.loads((tmp_path / 'model' / 'config.json').read_text())) == {'float32'}
    again = HFVisionLanguageModel(pretrained=str(tmp_path / 'model'))
    assert torch.equal(again.model.model.multi_modal_projector.linear_1.weight, trained)
    with pytest.raises(ValueError, match=r"dtype='int8'"):
        vlm.save_pretrained(tmp_path / 'model', dtype='int8')


@pytest.mark.parametrize('tied', [False, True])
def test_a_saved_config_says_whether_head_and_embeddings_are_one_weight(tmp_path, tied):
    config = tiny_vlms.tiny_config('internvl')  # Whose whole config says True by default.
    config['text_config']['tie_word_embeddings'] = tied
    vlm = HFVisionLanguageModel(config=config)
    assert (vlm.head.weight is vlm.model.get_input_embeddings().weight) == tied
    vlm.save_pretrained(tmp_path / 'model')
    content = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert content['tie_word_embeddings'] is content['text_config']['tie_word_embeddings'] is tied
    again = HFVisionLanguageModel(pretrained=str(tmp_path / 'model'))
    assert (again.head.weight is again.model.get_input_embeddings().weight) == tied
    assert torch.equal(again.head.weight, vlm.head.weight)


@pytest.mark.parametrize('trainable', [[], ['language_model']], ids=str)
def test_tied_weights_are_written_once_in_every_dtype(make, tmp_path, trainable):
    vlm = make('paligemma', dtype='bfloat16', trainable=trainable)
    widen_trained(vlm.parameters())
    vlm.save_pretrained(tmp_path / 'model')
    names = [name for name in load_file(tmp_path / 'model' / 'model.safetensors') if 'embed_tokens' in name]
    assert len(names) == 1
    assert not any('lm_head' in name for name in load_file(tmp_path / 'model' / 'model.safetensors'))
    again = HFVisionLanguageModel(pretrained=str(tmp_path / 'model'), dtype='bfloat16')
    assert again.head.weight is again.model.get_input_embeddings().weight
    assert torch.equal(again.head.weight, vlm.head.weight.bfloat16())


def test_a_folder_of_several_files_has_one_dtype(make, tmp_path, monkeypatch):
    vlm = make(dtype='bfloat16', trainable=['projector'])
    widen_trained(vlm.parameters())
    monkeypatch.setattr(vlm.model, 'save_pretrained', partial(vlm.model.save_pretrained, max_shard_size='10KB'))
    vlm.save_pretrained(tmp_path / 'model')
    files = sorted(tmp_path.glob('model/model-*.safetensors'))
    weights = {name: value for file in files for name, value in load_file(file).items()}
    assert len(files) > 2 and {value.dtype for value in weights.values()} == {torch.bfloat16}
    index = json.loads((tmp_path / 'model' / 'model.safetensors.index.json').read_text())
    assert index['weight_map'].keys() == weights.keys()
    assert index['metadata']['total_size'] == sum(value.nbytes for value in weights.values())
    again = HFVisionLanguageModel(pretrained=str(tmp_path / 'model'), dtype='bfloat16')
    assert all(torch.equal(value, vlm.state_dict()[name].bfloat16()) for name, value in again.state_dict().items())


def test_weights_and_buffers_that_the_library_keeps_in_float32_are_saved_in_the_dtype_of_the_rest(
    make, tmp_path, monkeypatch
):
    from transformers import LlavaForConditionalGeneration

    make().save_pretrained(tmp_path / 'float32')
    monkeypatch.setattr(LlavaForConditionalGeneration, '_keep_in_fp32_modules', ['multi_modal_projector'])
    vlm = HFVisionLanguageModel(pretrained=str(tmp_path / 'float32'), dtype='float16', trainable=[])
    assert {p.dtype for p in vlm.parameters()} == {torch.float16, torch.float32}
    assert vlm.loaded_dtype == torch.float16
    vlm.model.model.multi_modal_projector.register_buffer('scale', torch.ones(2))
    vlm.model.model.multi_modal_projector.register_buffer('steps', torch.ones(2, dtype=torch.int64))
    vlm.save_pretrained(tmp_path / 'float16')
    weights = load_file(tmp_path / 'float16' / 'model.safetensors')
    steps = next(name for name in weights if name.endswith('steps'))
    assert weights.pop(steps).dtype == torch.int64 and any(name.endswith('scale') for name in weights)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert dtypes_of(json.loads((tmp_path / 'float16' / 'config.json').read_text())) == {'float16'}


def test_a_config_that_says_dtypes_of_its_parts_and_by_its_old_name_says_one_afterwards(make, tmp_path):
    make(dtype='bfloat16').save_pretrained(tmp_path / 'model')
    path = tmp_path / 'model' / 'config.json'
    content = json.loads(path.read_text())
    content.pop('dtype')
    content['torch_dtype'] = 'float32'
    content['text_config'].update(dtype='float16')
    content['vision_config'].update(torch_dtype='float32')
    path.write_text(json.dumps(content))
    vlm = HFVisionLanguageModel(pretrained=str(tmp_path / 'model'), dtype='bfloat16')
    assert {p.dtype for p in vlm.parameters()} == {torch.bfloat16}
    vlm.save_pretrained(tmp_path / 'again')
    content = json.loads((tmp_path / 'again' / 'config.json').read_text())
    assert content['dtype'] == 'bfloat16' and 'torch_dtype' not in content
    assert dtypes_of(content) == {'bfloat16'} and stored(tmp_path / 'again') == {torch.bfloat16}


# transformers 4 reads the second with a warning, and refuses to write it.
@pytest.mark.parametrize('options', [dict(do_sample=True, temperature=0.3), dict(do_sample=False, temperature=0.3)])
def test_the_generation_config_of_a_folder_is_kept(make, tmp_path, options):
    make().save_pretrained(tmp_path / 'model')
    path = tmp_path / 'model' / 'generation_config.json'
    path.write_text(
        json.dumps(json.loads(path.read_text()) | options | dict(repetition_penalty=1.5, eos_token_id=[2, 7]))
    )
    vlm = HFVisionLanguageModel(pretrained=str(tmp_path / 'model'))
    before = vlm.model.generation_config
    vlm.save_pretrained(tmp_path / 'again')
    assert vlm.model.generation_config is before
    again = HFVisionLanguageModel(pretrained=str(tmp_path / 'again')).model.generation_config
    kept = {key: getattr(again, key) for key in ('temperature', 'repetition_penalty', 'eos_token_id', 'pad_token_id')}
    assert kept == dict(temperature=0.3, repetition_penalty=1.5, eos_token_id=[2, 7], pad_token_id=0)
    assert bool(again.do_sample) == options['do_sample']


class Wrapper(torch.nn.Module):
    """As torch.compile puts one around a module."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def __getattr__(self, name):
        return super().__getattr__(name) if name == '_orig_mod' else getattr(self._orig_mod, name)


@pytest.mark.parametrize(
    'places', [['model'], ['model.model.language_model', 'model.model'], ['model.lm_head']], ids=str
)
@pytest.mark.parametrize('wrap', [Wrapper, torch.compile], ids=['like', 'compiled'])
def test_names_of_wrapped_modules_are_those_without_their_wrappers(make, tmp_path, places, wrap):
    vlm, plain = make(dtype='bfloat16'), make(dtype='bfloat16')
    for place in places:
        parent, _, name = place.rpartition('.')
        setattr(vlm.get_submodule(parent), name, wrap(vlm.get_submodule(place)))
    assert any('_orig_mod' in name for name in vlm.state_dict())
    for one, folder in ((vlm, 'wrapped'), (plain, 'plain')):
        widen_trained(one.parameters())
        one.save_pretrained(tmp_path / folder)
    found, expected = (load_file(tmp_path / folder / 'model.safetensors') for folder in ('wrapped', 'plain'))
    assert found.keys() == expected.keys()
    assert all(value.dtype == torch.bfloat16 and torch.equal(value, expected[name]) for name, value in found.items())
    # And a checkpoint of it is read without them.
    if places != ['model']:
        again = make(dtype='bfloat16')
        [p.data.zero_() for p in again.parameters()]
        again.load_state_dict(vlm.state_dict())
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in again.state_dict().items())


def test_adapters_in_wrapped_modules_are_written_under_their_plain_names(make, tmp_path):
    vlm = make(lora=dict(r=2))
    decoder = vlm.family.model.model
    vlm.save_pretrained(tmp_path / 'plain')
    decoder.language_model = Wrapper(decoder.language_model)
    vlm.save_pretrained(tmp_path / 'wrapped')
    assert isinstance(decoder.language_model, Wrapper)
    files = [tmp_path / name / 'adapter_model.safetensors' for name in ('plain', 'wrapped')]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_folder_without_some_weights_is_refused_by_name(make, tmp_path):
    make().save_pretrained(tmp_path / 'model')
    tensors = load_file(tmp_path / 'model' / 'model.safetensors')
    lost = next(name for name in tensors if name.endswith('multi_modal_projector.linear_2.weight'))
    del tensors[lost]
    save_file(tensors, tmp_path / 'model' / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ValueError, match=r'lacks weights.*multi_modal_projector\.linear_2\.weight$'):
        HFVisionLanguageModel(pretrained=str(tmp_path / 'model'))


def test_saving_replaces_a_folder_and_a_failure_leaves_it(make, tmp_path, monkeypatch):
    vlm = make(trainable=[])
    folder = tmp_path / 'model'
    folder.mkdir()
    (folder / 'old').touch()
    (folder / 'config.json').touch()

    def fail(path, **kwargs):
        (path / 'half').touch()
        raise OSError('disk full')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='disk full'):
        patch.setattr(vlm.model, 'save_pretrained', fail)
        vlm.save_pretrained(folder)
    assert {path.name for path in tmp_path.rglob('*')} == {'model', 'old', 'config.json'}
    vlm.save_pretrained(folder)
    assert (folder / 'config.json').read_text() and not (folder / 'old').exists()


def test_a_folder_of_other_files_is_not_replaced(make, tmp_path):
    (tmp_path / 'iter_500.pth').write_text('days of training')
    with pytest.raises(FileExistsError, match=r'holds other files than a model \(iter_500\.pth'):
        make(trainable=[]).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.rglob('*')] == ['iter_500.pth']
