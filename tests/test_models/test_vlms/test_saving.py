import pytest
import tiny_vlms
import torch

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


def test_saving_replaces_a_folder_and_a_failure_leaves_it(make, tmp_path, monkeypatch):
    vlm = make(trainable=[])
    folder = tmp_path / 'model'
    folder.mkdir()
    (folder / 'old').touch()

    def fail(path, **kwargs):
        (path / 'half').touch()
        raise OSError('disk full')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='disk full'):
        patch.setattr(vlm.model, 'save_pretrained', fail)
        vlm.save_pretrained(folder)
    assert [path.name for path in tmp_path.rglob('*')] == ['model', 'old']
    vlm.save_pretrained(folder)
    assert 'config.json' in {path.name for path in folder.iterdir()} and not (folder / 'old').exists()
