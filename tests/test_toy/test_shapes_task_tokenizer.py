"""Tests of the tokenizer of the drawn tasks: nothing is unknown, and every text comes back to the space."""

import pytest
from mmengine.registry import TRANSFORMS

from mergemix_mm.datasets import EncodeConversation, ShapesTaskDataset, SphinxProcessor, shapes_task_words
from mergemix_mm.datasets.conversations.formats import text_of
from mergemix_mm.toy.shapes_task_tokenizer import COORDINATES
from mergemix_mm.toy.shapes_tasks import TASKS

TRANSFORMS_OF = {task: f'{task.title().replace("_", "")}Task' for task in TASKS} | dict(vqa='ShortAnswerTask')


@pytest.fixture(scope='module')
def tokenizer():
    return TRANSFORMS.build(dict(type='ShapesTaskTokenizer'))


def _texts(task, length=160, **kwargs):
    for split in ('train', 'val'):
        dataset = ShapesTaskDataset(
            task, split, length, image_size=24, pipeline=[dict(type=TRANSFORMS_OF[task], **kwargs)]
        )
        yield from (text_of(message) for i in range(length) for message in dataset[i]['messages'])


def test_every_word_is_one_token(tokenizer):
    words = shapes_task_words()
    assert len(words) == len(set(words)) == len(tokenizer) < 224
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    for index, word in enumerate(words):
        assert tokenizer.encode(word) == [index]
        assert tokenizer.decode([index]) == word


@pytest.mark.parametrize('task', TASKS)
def test_whatever_a_task_writes_comes_back_to_the_space(tokenizer, task):
    for text in set(_texts(task)):
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert tokenizer.unk_token_id not in encoded['input_ids']
        assert tokenizer.decode(encoded['input_ids']) == text
        for index, (start, end) in zip(encoded['input_ids'], encoded['offset_mapping'], strict=True):
            assert text[start:end] == shapes_task_words()[index]


def test_no_word_is_there_that_no_task_writes(tokenizer):
    used = {index for task in TASKS for text in _texts(task, 160) for index in tokenizer.encode(text)}
    unused = {word for index, word in enumerate(shapes_task_words()) if index not in used} - {*COORDINATES}
    assert unused == {'<pad>', '<s>', '</s>', '<unk>', 'USER', 'ASSISTANT'}


def test_the_bare_questions_of_the_ablation_are_known_too(tokenizer):
    for task in ('vqa', 'grounding', 'detection', 'region_caption', 'multiple_choice'):
        for text in set(_texts(task, 100, instruction=None)):
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    'text, tokens',
    [
        ('[0.12,1.00;1]', ['[', '0.12', ',', '1.00', ';', '1', ']']),
        ('[0.123,0.3]', ['[', '0', '.', '1', '2', '3', ',', '0', '.', '3', ']']),
        ('10.12, 1.01', ['1', '0', '.', '1', '2', ',', '1', '.', '0', '1']),
        ('<p>a red ring</p>[0.5]', ['<p>', 'a', 'red', 'ring', '</p>', '[', '0', '.', '5', ']']),
        ('What is 7 + 5?', ['What', 'is', '7', '+', '5', '?']),
        ('A. 12\nB. red', ['A', '.', '1', '2', '\n', 'B', '.', 'red']),
    ],
)
def test_coordinates_digits_and_marks_are_tokens_of_their_own(tokenizer, text, tokens):
    assert tokenizer.tokenize(text) == tokens


def test_a_word_of_another_world_is_unknown(tokenizer):
    assert tokenizer.encode('a red cat') == [*tokenizer.encode('a red'), tokenizer.unk_token_id]


def test_answers_are_decoded_as_they_were_written_with_the_tokens_of_a_sphinx(tokenizer):
    processor = SphinxProcessor(tokenizer=dict(type='ShapesTaskTokenizer'), view_tokens=4, image_size=48)
    encode = EncodeConversation(processor)
    for task in ('grounded_caption', 'text_only'):
        dataset = ShapesTaskDataset(
            task, length=10, pipeline=[dict(type=TRANSFORMS_OF[task], **_decimals(task)), encode]
        )
        for sample in (dataset[i] for i in range(10)):
            ids, labels = sample['inputs']['input_ids'], sample['inputs']['labels']
            answer = sample['data_samples'].gt_answer
            assert processor.decode(labels[labels != -100]) == f'{answer}</s>'
            prompt = processor.decode(ids[labels == -100], skip_special_tokens=True)
            assert prompt.startswith('USER:') and prompt.endswith('ASSISTANT:')
            assert (ids == processor.image_token_id).sum() == 4 * (task != 'text_only')


def test_a_saved_tokenizer_loads_in_plain_transformers(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = 'A red ring and a blue cross.\n[0.12,0.34,0.56,0.78;0.1,0.2,0.3,0.4]'
    assert loaded.encode(text) == tokenizer.encode(text) and loaded.decode(loaded.encode(text)) == text


def _decimals(task):
    return dict(decimals=2) if task == 'grounded_caption' else {}
