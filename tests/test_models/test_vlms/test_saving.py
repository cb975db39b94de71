import json

import pytest
import tiny_vlms
import torch
from safetensors.torch import load_file, save_file

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
