"""Tests of tools/visualization/browse_labels.py, called in this process."""

import json
import re
import sys
from unittest import mock

import numpy as np
import pytest
import tiny_vlms
import torch
from mmengine.config import Config
from PIL import Image

from mergemix_mm.toy import ShapesConversationDataset

MERGEMIX = dict(type='MergeMix', num_merge=4)
MIXUP = dict(type='Mixup', alpha=1.0)


def tiny_llava():
    """The config of a model for ShapesProcessor, whose images have 36 patches."""
    config = tiny_vlms.tiny_config('llava')
    config['vision_config'] |= dict(image_size=48, patch_size=8)
    return config


def shapes_config(**model):
    processor = dict(type='ShapesProcessor')
    pipeline = [dict(type='EncodeConversation', processor=processor)]
    vlm = dict(type='HFVisionLanguageModel', config=tiny_llava())
    return dict(
        model=dict(type='VLMTuner', vlm=vlm, **model),
        train_dataloader=dict(
            batch_size=16,
            num_workers=2,
            persistent_workers=True,
            collate_fn=dict(type='ConversationCollate'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='ShapesConversationDataset', length=60, pipeline=pipeline),
        ),
        randomness=dict(seed=7),
    )


@pytest.fixture
def browse(load_tool, tmp_path, capsys):
    """Write a config, run the tool on it; its output, and what it drew (a CanvasMix and options) if it did."""
    tool = load_tool('visualization/browse_labels')

    def run(config, *arguments):
        path = tmp_path / 'tiny.py'
        Config(config).dump(str(path))
        with mock.patch.object(tool, 'draw_mixed_samples', wraps=tool.draw_mixed_samples) as draw:
            tool.main([str(path), '-o', str(tmp_path), *map(str, arguments)])
        run.drawn = draw.call_args
        return capsys.readouterr().out

    run.tool = tool
    return run


def simpo(mixer):
    return shapes_config(head=dict(type='SimPOHead'), mixer=mixer)


def question_and_answer(index):
    record = ShapesConversationDataset(length=60)[index]
    question = re.findall(r'\w+|\?', record['messages'][0]['content'][1]['text'])
    return ' '.join(question), record['gt_answer']


def test_what_is_trained_is_printed_with_its_source_and_numbers(browse):
    printed = browse(shapes_config(), '--number', '3', '--no-images').strip().split('\n\n')
    assert len(printed) == 3
    for index, text in enumerate(printed):
        question, answer = question_and_answer(index)
        count = 3 + 36 + len(question.split()) + 4 - 1
        assert text.splitlines() == [
            f'#{index + 1} ShapesConversationDataset[{index}]',
            f'{count} tokens, 2 labelled, 1 image',
            f'USER :[image x 36] {question} ASSISTANT :« {answer} </s>»',
        ]


def test_a_terminal_shows_labels_in_green_unless_told_otherwise(browse, monkeypatch):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    answer = question_and_answer(0)[1]
    assert f'\x1b[32m {answer} </s>\x1b[0m' in browse(shapes_config(), '-n', '1', '--no-images')
    assert f'« {answer} </s>»' in browse(shapes_config(), '-n', '1', '--no-images', '--no-colour')


def test_samples_come_in_the_order_of_a_run(browse):
    from mmengine.runner import Runner

    config = shapes_config()
    config['train_dataloader']['sampler'] = dict(type='DefaultSampler', shuffle=True)
    expected = next(
        iter(
            Runner.build_dataloader(
                Config(config).train_dataloader | dict(num_workers=0, persistent_workers=False), seed=7
            )
        )
    )
    found = re.findall(r'^#\d+ (.*)$', browse(config, '-n', '20', '--no-images'), re.MULTILINE)
    assert found[:16] == [sample.source for sample in expected['data_samples']] and len(set(found)) == 20


@pytest.mark.parametrize('arguments', [['--no-images'], []])
def test_weights_are_not_read_where_the_tower_does_not_score(browse, tmp_path, arguments):
    from transformers import LlavaConfig

    LlavaConfig(**tiny_llava() | dict(model_type='llava')).save_pretrained(tmp_path / 'without-weights')
    for mixer in (MIXUP, MERGEMIX) if arguments else (MIXUP,):
        config = simpo(mixer)
        config['model']['vlm'] = dict(type='HFVisionLanguageModel', pretrained=str(tmp_path / 'without-weights'))
        printed = browse(config, *arguments)
        assert 'Loading the whole model' not in printed and printed.count('[image x 36]') == 4
        assert len(re.findall('^(ratio|not mixed)', printed, re.MULTILINE)) == (0 if arguments else 4)


def test_the_options_that_it_names_halve_the_weights(browse):
    cfg = Config(simpo(MERGEMIX))
    cfg.merge_from_dict({'model.vlm.trainable': [], 'model.vlm.dtype': 'bfloat16'})
    assert {parameter.dtype for parameter in browse.tool.build_tuner(cfg.model).parameters()} == {torch.bfloat16}


def test_the_page_shows_the_images_of_the_samples_and_their_mixes(browse, tmp_path):
    printed = browse(simpo(MERGEMIX), '-n', '3', '--cfg-options', 'model.vlm.dtype=float32')
    assert printed.startswith('Loading the whole model (random weights)')
    assert printed.endswith(f'Images written to {tmp_path / "tiny.png"}\n')
    assert np.asarray(Image.open(tmp_path / 'tiny.png')).std() > 10
    (result, mean, std), options = browse.drawn
    assert options == dict(labels=['#1', '#2', '#3'], max_rows=3)
    for index, clean in enumerate(result.clean):
        pixels = (clean * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(pixels, ShapesConversationDataset(length=60)[index]['images'][0], atol=1e-3)
    lines = [line for line in printed.splitlines() if line.startswith('ratio')]
    assert lines == [
        f'ratio {ratio:.3f}, margin {1 - ratio:.3f}, partner #{partner + 1}'
        for ratio, partner in zip(result.ratio.tolist(), result.partner.tolist())
    ]
    assert any(not torch.equal(*pair) for pair in zip(result.images, result.clean))


def test_patches_are_scored_with_the_weights_that_a_run_begins_with(browse, tmp_path):
    from mmengine.registry import MODELS

    config = simpo(MERGEMIX)
    tuner = MODELS.build(config['model'])
    torch.save(dict(state_dict=tuner.state_dict()), tmp_path / 'weights.pth')
    saliency = []
    for load_from in (str(tmp_path / 'weights.pth'), str(tmp_path / 'weights.pth'), None):
        browse(config | dict(load_from=load_from), '-n', '2')
        saliency.append(browse.drawn[0][0].saliency)
    assert torch.equal(saliency[0], saliency[1]) and not torch.equal(saliency[0], saliency[2])


def test_the_seed_decides_the_mixes(browse, tmp_path):
    pages = []
    for seed in (0, 0, 1):
        browse(simpo(MIXUP), '-n', '2', '--seed', seed)
        pages.append((tmp_path / 'tiny.png').read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_without_a_mixer_the_page_shows_what_the_model_sees(browse):
    printed = browse(shapes_config(), '-n', '2')
    (result, *_), _ = browse.drawn
    assert 'ratio' not in printed and not result.mixed.any() and len(result.clean) == 2


def write_records(folder, records):
    """A dataset of these records, encoded for Qwen2.5-VL, with an image of 56 x 84 pixels."""
    tiny_vlms.random_image(56, 84, seed=0).save(folder / 'wide.png')
    tiny_vlms.random_image(56, 56, seed=1).save(folder / 'square.png')
    (folder / 'data.json').write_text('[\n' + ',\n'.join(map(json.dumps, records)) + '\n]')
    tiny_vlms.tiny_processor('qwen2_5_vl').save_pretrained(folder / 'processor')
    processor = dict(
        type='transformers.AutoProcessor.from_pretrained', pretrained_model_name_or_path=str(folder / 'processor')
    )
    pipeline = [dict(type='EncodeConversation', processor=processor)]
    config = shapes_config(head=dict(type='SimPOHead', margin=0.5))
    config['model']['vlm']['config'] = tiny_vlms.tiny_config('qwen2_5_vl')
    config['train_dataloader']['dataset'] = dict(
        type='ConversationDataset', ann_file='data.json', data_root=str(folder), pipeline=pipeline
    )
    return config


def test_both_answers_of_a_pair_are_printed(browse, tmp_path):
    user = dict(role='user', content='<image>\nWhat?')
    pair = {
        'image': 'wide.png',
        'chosen': [user, dict(role='assistant', content='Caf\u00e9')],
        'rejected': [user, dict(role='assistant', content='Tea room')],
    }
    printed = browse(write_records(tmp_path, [pair]), '--no-images')
    assert printed.startswith(f'#1 {tmp_path}/data.json:2\nchosen: ')
    chosen, rejected = printed.split('\n\n')[:2]
    assert re.search(r'chosen: \d+ tokens, 6 labelled, 1 image\n', chosen)  # Two bytes of an accent.
    assert '[image x 6, marker x 2]What?<|im_end|>' in chosen and '«Caf\u00e9<|im_end|>»' in chosen
    assert re.match(r'rejected: \d+ tokens, 9 labelled, 1 image\n', rejected)
    assert '[image x 6, marker x 2]What?' in rejected and '«Tea room<|im_end|>»' in rejected


def conversation(*images):
    question = '<image>' * len(images) + 'What?'
    turns = [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': 'Cat'}]
    return dict(image=[f'{name}.png' for name in images], conversations=turns) if images else dict(conversations=turns)


def test_images_of_several_sizes_and_samples_without_a_partner(browse, tmp_path):
    records = [conversation('wide', 'square'), conversation(), conversation('square')]
    config = write_records(tmp_path, records)
    config['model'].update(head=dict(type='SimPOHead', margin=0.25), mixer=dict(type='SwapImages'))
    printed = browse(config, '-n', '3').split('\n\n')
    first, second, third = (text.splitlines()[1:3] for text in printed[:3])
    assert first[0] == 'ratio 0.000, margin 0.250, partner #3' and first[1].endswith(', 2 images')
    assert second[0] == 'not mixed: no preference term' and second[1].endswith(', 0 images')
    assert third[0] == 'ratio 0.000, margin 0.250, partner #1' and third[1].endswith(', 1 image')
    (result, *_), options = browse.drawn
    assert [tuple(image.shape[1:]) for image in result.images] == [(56, 84), (56, 56), (56, 56)]
    assert options['labels'] == ['#1', '#1', '#3']


def test_text_alone_has_no_page(browse, tmp_path):
    printed = browse(write_records(tmp_path, [conversation(), conversation()]), '-n', '2')
    assert browse.drawn is None and 'No figure is written' in printed and printed.count('«Cat<|im_end|>»') == 2


def test_without_a_model_images_are_known_by_their_token(browse, tmp_path):
    config = write_records(tmp_path, [conversation('square')])
    config.pop('model')
    printed = browse(config)
    assert '<|vision_start|>[image x 4]<|vision_end|>What?' in printed and browse.drawn is None


def test_a_character_of_several_tokens_is_shown_whole(browse):
    tokenizer = tiny_vlms.tiny_tokenizer('llava')
    ids = tokenizer('a \u00e9\u2713b</s>', add_special_tokens=False)['input_ids']
    assert browse.tool.token_texts(tokenizer, ids) == ['a', ' ', '', '\u00e9', '', '', '\u2713', 'b', '</s>']


def test_mistakes_are_named(browse, tmp_path):
    config = shapes_config()
    config['train_dataloader']['dataset']['length'] = 3
    with pytest.raises(SystemExit, match='not one batch of batch_size=16 comes from the 3 samples'):
        browse(config, '--cfg-options', 'train_dataloader.drop_last=True')
    config['train_dataloader']['dataset']['pipeline'] = []
    with pytest.raises(SystemExit, match=r'train_dataloader.dataset.pipeline: no transform has a processor'):
        browse(config)
    config = write_records(tmp_path, [conversation('wide')])
    (tmp_path / 'wide.png').unlink()
    with pytest.raises(SystemExit, match=r'data\.json:2.*wide\.png does not exist'):
        browse(config)
    config.pop('train_dataloader')
    with pytest.raises(SystemExit, match='has no train_dataloader'):
        browse(config)
