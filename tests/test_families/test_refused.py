"""Models that no family serves are refused by name, with the reason, before their weights are read."""

import json
import re

import pytest

pytest.importorskip('transformers')
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mergemix_mm.families import FAMILIES, find_family
from mergemix_mm.families.refused import REFUSED
from mergemix_mm.models import HFVisionLanguageModel


def test_every_model_that_the_library_knows_is_served_or_has_a_reason():
    assert not {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - {*FAMILIES} - {*REFUSED}
    assert not {*FAMILIES} & {*REFUSED}


def test_models_that_a_reason_recommends_are_served():
    named = {name for reason in REFUSED.values() for name in re.findall(r'\buse (\w+)(?: or (\w+))?$', reason)}
    assert len(named) > 5 and {name for pair in named for name in pair if name} <= {*FAMILIES}


@pytest.mark.parametrize('model_type', REFUSED)
def test_a_refused_model_is_named_with_its_reason_and_no_weights_are_read(tmp_path, model_type):
    (tmp_path / 'config.json').write_text(json.dumps(dict(model_type=model_type)))
    (tmp_path / 'model.safetensors').write_bytes(b'not weights')
    expected = f'model_type={model_type!r}: {REFUSED[model_type]}. Supported are '
    with pytest.raises(ValueError, match=f'^{re.escape(expected)}') as caught:
        HFVisionLanguageModel(pretrained=str(tmp_path))
    assert '\n' not in str(caught.value) and 'docs/extend/custom_vlm.md' in str(caught.value)


@pytest.mark.parametrize('model_type', ['llama', 'from-the-future', None])
def test_other_models_get_the_general_reason(model_type):
    with pytest.raises(ValueError, match=f'^model_type={model_type!r}: it is not a vision-language model'):
        find_family(model_type)


@pytest.mark.parametrize('key', ['pretrained', 'config', 'dict'])
def test_a_served_model_that_the_installed_library_lacks_names_the_version(tmp_path, monkeypatch, key):
    monkeypatch.setitem(FAMILIES, 'of-a-later-version', FAMILIES['llava'])
    (tmp_path / 'config.json').write_text('{"model_type": "of-a-later-version"}')
    given = dict(config=dict(model_type='of-a-later-version')) if key == 'dict' else {key: str(tmp_path)}
    with pytest.raises(ValueError, match=r"^model_type='of-a-later-version' is unknown to transformers \d.*newer"):
        HFVisionLanguageModel(**given)
