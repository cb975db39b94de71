import pytest

from mergemix_mm.models.vlms import HFVisionLanguageModel


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(), 'exactly one'),
        (dict(pretrained='a', config={}), 'exactly one'),
        (dict(config=dict(model_type='blip')), "model_type='blip'.*'llava', .*'llava_next'"),
        (dict(config=dict(hidden_size=3)), 'model_type=None'),
        (dict(config=dict(model_type='llava'), dtype='int8'), "dtype='int8'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HFVisionLanguageModel(**arguments)


@pytest.mark.parametrize('key', ['pretrained', 'config'])
def test_a_missing_folder_is_reported_with_its_key_and_the_way_out(tmp_path, key, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    missing = str(tmp_path / 'nothing')
    with pytest.raises(OSError, match=rf"{key}='{missing}'.*Set {key} to a folder"):
        HFVisionLanguageModel(**{key: missing})


def test_a_folder_of_adapters_is_refused_with_the_command_that_merges_them(tmp_path):
    (tmp_path / 'adapter_config.json').write_text('{}')
    with pytest.raises(ValueError, match='holds the adapters.*--merge-lora'):
        HFVisionLanguageModel(pretrained=str(tmp_path))
