import json

import numpy as np
import pytest
import tiny_vlms
import torch
from PIL import Image

from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.vlms import HFVisionLanguageModel

QUESTIONS = [
    ('What is it?\nAnswer the question using a single word or phrase.', 'Cat.'),
    ('Describe it in a few words, please.', 'A cat on a mat, and a dog.'),
    ('What is it?', 'A cat.'),
]


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/interaction_curve')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Tiny random models with their processors: a LLaVA, and a Janus that reads and writes images of 32 pixels."""
    root = tmp_path_factory.mktemp('models')
    for family in ('llava', 'janus'):
        torch.manual_seed(0)
        config = tiny_vlms.tiny_config(family)
        if family == 'janus':
            config['vision_config'].update(image_size=32, patch_size=8)
            config['vq_config']['channel_multiplier'] = [1, 1, 1, 1]
        HFVisionLanguageModel(config=config).save_pretrained(root / family)
        processor = tiny_vlms.tiny_processor(family)
        if family == 'janus':
            processor.image_processor.size = dict(height=32, width=32)
        processor.save_pretrained(root / family)
    return root


@pytest.fixture
def data(tmp_path):
    """Files of conversations (one of text alone) and of prompts with images."""
    for i in range(3):
        tiny_vlms.random_image(30, 40, i).save(tmp_path / f'{i}.png')
    turns = [[{'from': 'human', 'value': f'<image>\n{q}'}, {'from': 'gpt', 'value': a}] for q, a in QUESTIONS]
    records = [dict(image=f'{i}.png', conversations=turn) for i, turn in enumerate(turns)]
    text = [{'from': 'human', 'value': 'Who?'}, {'from': 'gpt', 'value': 'Goethe.'}]
    (tmp_path / 'talk.json').write_text(json.dumps([dict(conversations=text), *records]))
    prompts = [dict(prompt=text, image=f'{i}.png') for i, text in enumerate(['a cat', 'a red dog ' * 4, 'a mat'])]
    (tmp_path / 'draw.jsonl').write_text('\n'.join(map(json.dumps, prompts)))
    return tmp_path


def run(tool, *arguments):
    tool.main([*map(str, arguments), '--device', 'cpu'])


def by_hand(folder, root):
    """Attention of the answers to the image, [layers] for each conversation, from eager maps of the library."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation='eager').eval()
    processor, rows = AutoProcessor.from_pretrained(folder), []
    for i, (question, answer) in enumerate(QUESTIONS):
        text = f'USER: <image>\n{question} ASSISTANT:'
        image = Image.open(root / f'{i}.png').convert('RGB')
        inputs = processor(text=f'{text} {answer}</s>', images=image, return_tensors='pt')
        ids = inputs['input_ids'][0]
        # One token per byte: of the answer, and the end token.
        num_answer = len(answer) + 1
        assert processor.decode(ids[-num_answer:-1]).strip() == answer.strip()
        with torch.no_grad():
            maps = model(**inputs, output_attentions=True).attentions
        is_image = ids == model.config.image_token_id
        rows.append([one[0, :, -num_answer - 1 :, is_image].sum(-1).mean().item() for one in maps])
    return np.array(rows)


def test_curve_is_the_attention_of_answers_to_images(tool, folders, data, capsys):
    out = data / 'curves/llava.json'
    run(tool, folders / 'llava', data / 'talk.json', '--out', out, '--image-root', data)
    found = json.loads(out.read_text())['und']
    expected = by_hand(folders / 'llava', data)
    assert found['samples'] == 3  # Text alone has no image to attend to.
    assert found['mean'] == pytest.approx(expected.mean(0), abs=1e-5)
    assert found['std'] == pytest.approx(expected.std(0), abs=1e-5)
    assert {kind: curve['samples'] for kind, curve in found['by_type'].items()} == {
        'open question': 2,
        'short answer': 1,
    }
    assert found['by_type']['short answer']['mean'] == pytest.approx(expected[0], abs=1e-5)
    assert sum(curve['samples'] for curve in found['by_length'].values()) == 3
    assert 'understanding: 3 samples' in capsys.readouterr().out
    assert sorted(path.name for path in out.parent.iterdir()) == ['llava.json', 'llava.png']


def test_result_is_a_preset(tool, folders, data):
    out = data / 'llava.json'
    run(tool, folders / 'llava', data / 'talk.json', '--out', out, '--image-root', data)
    target, _ = AIALoss(str(out)).curve('und', 2)
    assert target == pytest.approx(json.loads(out.read_text())['und']['mean'])


def test_a_unified_model_has_both_curves_and_others_are_drawn_beside_it(tool, folders, data, monkeypatch, capsys):
    earlier, drawn = data / 'earlier.json', {}
    earlier.write_text(json.dumps(dict(und=dict(mean=[0.1, 0.2, 0.3], std=[0.0, 0.1, 0.0]))))
    draw = tool.draw_interaction_curves
    monkeypatch.setattr(tool, 'draw_interaction_curves', lambda curves: drawn.update(curves) or draw(curves))
    out = data / 'janus.json'
    arguments = (folders / 'janus', data / 'talk.json', data / 'draw.jsonl', '--image-root', data)
    run(tool, *arguments, '--out', out, '--compare', earlier)
    found = json.loads(out.read_text())
    assert list(drawn) == ['janus: generation', 'janus: understanding', 'earlier: understanding']
    assert [len(found[task]['mean']) for task in ('gen', 'und')] == [2, 2]
    # One token per byte, and those of the template: 'a cat' and 'a mat', and a longer one.
    assert [curve['samples'] for curve in found['gen']['by_length'].values()] == [2, 1]
    assert list(found['gen']['by_length']) == ['9-16', '33-64']
    assert 'correlation of the two over the layers' in capsys.readouterr().out
    # The same samples, whatever the order they come in.
    run(tool, *arguments, '--out', out, '--seed', 5)
    assert json.loads(out.read_text())['gen']['mean'] == pytest.approx(found['gen']['mean'], abs=1e-6)


def test_dataset_of_a_config_is_measured_with_its_pipeline(tool, folders, data):
    config = data / 'shapes.py'
    config.write_text(
        "processor = dict(type='ShapesProcessor', image_size=28, patch_size=7)\n"
        "pipeline = [dict(type='EncodeConversation', processor=processor)]\n"
        "dataset = dict(type='ShapesConversationDataset', length=9, image_size=28, pipeline=pipeline)\n"
        'train_dataloader = dict(dataset=dataset)\n'
    )
    run(tool, folders / 'llava', config, '--out', data / 'shapes.json', '--num-samples', 5)
    found = json.loads((data / 'shapes.json').read_text())['und']
    assert found['samples'] == sum(curve['samples'] for curve in found['by_type'].values()) == 5
    assert set(found['by_type']) <= {'color', 'shape', 'count', 'position', 'yesno'}
    run(tool, folders / 'llava', config, '--out', data / 'shapes.json', '--type-key', 'gt_answer')
    assert json.loads((data / 'shapes.json').read_text())['und']['samples'] == 9


def test_prompt_lengths_are_grouped_by_powers_of_two(tool):
    lengths = {1: '0-8', 8: '0-8', 9: '9-16', 16: '9-16', 17: '17-32', 64: '33-64', 65: '65-128'}
    assert {length: tool.length_range(length) for length in lengths} == lengths


def test_bad_arguments_are_named(tool, folders, data):
    llava, talk, out = folders / 'llava', data / 'talk.json', data / 'out.json'
    for arguments, message in [
        ((llava, data / 'none.json', '--out', out), 'DATA: there is no file'),
        ((data, talk, '--out', out, '--image-root', data), 'cannot|neither|Unrecognized|Can.t'),
        ((llava, talk, '--out', out), r'image 1?0?2?\.png does not exist'),
        ((llava, talk, '--out', out, '--image-root', data, '--type-key', 'mood'), "--type-key: .*'mood'"),
        ((llava, talk, talk, '--out', out, '--image-root', data), 'one per task'),
        ((llava, talk, '--out', out, '--compare', talk), '--compare: .*holds no curve'),
    ]:
        with pytest.raises(SystemExit, match=message):
            run(tool, *arguments)
    assert not out.exists()
    with pytest.raises(SystemExit):
        run(tool, llava, talk, '--out', data / 'out.txt')
