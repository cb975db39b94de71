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
