"""DeepSeek-VL: conversations, and names of weights. tests/tiny_vlms/deepseek_vl.py brings the tests of all families."""

import json

import pytest
import tiny_vlms
import torch
from safetensors.torch import load_file, save_file

from mergemix_mm.datasets.conversations.chat_template import find_chat_template
from mergemix_mm.models import HFVisionLanguageModel
from mergemix_mm.models.vlms.adapting import load_adapters

NAME = 'deepseek_vl'
# As released: a default system prompt, texts joined by spaces, an end token after every turn but the user's.
RELEASED = (
    '{{ system }}{% for m in messages %}{{ m.role | capitalize }}: {% for c in m.content %}{% if c.type == "image" %}'
    '<image_placeholder>{% elif not loop.first and loop.previtem.type == "text" %}{{ " " + c.text }}{% else %}'
    '{{ c.text }}{% endif %}{% endfor %}{{ "\n\n" if m.role == "user" else "<｜end▁of▁sentence｜>" }}{% endfor %}'
    '{% if add_generation_prompt %}Assistant:{% endif %}'
).replace('{{ system }}', tiny_vlms.WRITTEN[NAME].partition('User: ')[0])


PARTS = ['vision_tower', 'projector', 'language_model']


def build(**options):
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config(NAME), **options).eval()


def turn(role, *parts):
    return dict(role=role, content=[dict(type='text', text=one) if one else dict(type='image') for one in parts])


TALKS = [
    [turn('user', '', 'Q'), turn('assistant', 'A')],
    [turn('user', 'First', '', 'second', 'third'), turn('assistant', 'A'), turn('user', 'R'), turn('assistant', 'B')],
    [turn('system', 'S.'), turn('user', 'Q', ''), turn('assistant', 'A')],
]


@pytest.mark.parametrize('messages', TALKS, ids=['one', 'two', 'system'])
def test_conversations_are_those_of_the_released_template(messages):
    processor = tiny_vlms.tiny_processor(NAME)
    processor.chat_template = RELEASED
    template = find_chat_template(processor)
    assert template.name == NAME
    assert template.render(messages)[0] == processor.apply_chat_template(messages)
    prompt = processor.apply_chat_template(messages[:-1], add_generation_prompt=True)
    assert template.render(messages[:-1], generation_prompt=True)[0] == prompt


WRAPPED, BARE = 'vision_model.vision_model.', 'vision_model.'


def renamed(weights, form):
    """Weights as the version of transformers writes them that has the tower in a wrapper, or bare."""
    return {name.replace(WRAPPED, BARE).replace(BARE, form): value for name, value in weights.items()}


@pytest.mark.parametrize('form', [WRAPPED, BARE], ids=['transformers 4', 'transformers 5'])
def test_folders_checkpoints_and_adapters_of_both_versions_are_read(form, tmp_path):
    """The tower is called `vision_model`, as is the module inside of its wrapper in transformers 4."""
    vlm, adapted = build(), build(trainable=PARTS, lora=dict(r=2, init_lora_weights=False))
    vlm.save_pretrained(tmp_path / 'model')
    adapted.save_pretrained(tmp_path / 'lora')
    file = tmp_path / 'model' / 'model.safetensors'
    weights = load_file(file)
    assert set(weights) == set(renamed(weights, WRAPPED))  # What both versions read.
    save_file(renamed(weights, form), file, metadata=dict(format='pt'))
    file, config = tmp_path / 'lora' / 'adapter_model.safetensors', tmp_path / 'lora' / 'adapter_config.json'
    save_file(renamed(load_file(file), form), file)
    saved = json.loads(config.read_text())
    config.write_text(json.dumps(saved | dict(modules_to_save=[f'model.{form[:-1]}', 'model.aligner'])))

    again, fresh, batch = (
        HFVisionLanguageModel(pretrained=str(tmp_path / 'model')).eval(),
        build(),
        tiny_vlms.mixed_batch(NAME),
    )
    fresh.load_state_dict({name: torch.zeros_like(one) for name, one in fresh.state_dict().items()})
    fresh.load_state_dict(renamed(vlm.state_dict(), form))
    with torch.no_grad():
        expected, of_adapters = vlm.hidden(batch), adapted.hidden(batch)
        assert torch.equal(again.hidden(batch), expected) and torch.equal(fresh.hidden(batch), expected)
        load_adapters(again.model, tmp_path / 'lora')
        assert torch.equal(again.hidden(batch), of_adapters) and not torch.equal(expected, of_adapters)
