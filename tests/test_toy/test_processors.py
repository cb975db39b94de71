"""Processors and tokenizers of the drawn records: nothing is unknown, and every text comes back to the space."""

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS
from transformers import AutoProcessor, LlavaProcessor

from mergemix_mm.datasets import EncodeConversation, EncodeGeneration, SphinxProcessor
from mergemix_mm.datasets.conversations.formats import text_of
from mergemix_mm.toy import (
    ShapesConversationDataset,
    ShapesGenerationDataset,
    ShapesTaskDataset,
    shapes_janus_processor,
    shapes_janus_words,
    shapes_processor,
    shapes_task_words,
    shapes_words,
)
from mergemix_mm.toy.processors import COORDINATES, SPECIAL_TOKENS
from mergemix_mm.toy.tasks import TASKS


@pytest.fixture(scope='module')
def processor():
    return TRANSFORMS.build(dict(type='ShapesProcessor', image_size=48, patch_size=8))


def _records(length=300, **kwargs):
    dataset = ShapesConversationDataset(length=length, **kwargs)
    return [dataset.get_data_info(index) for index in range(length)]


def test_every_word_is_one_token_and_decodes_to_itself(processor):
    tokenizer, words = processor.tokenizer, shapes_words()
    assert words[: len(SPECIAL_TOKENS)] == SPECIAL_TOKENS and len(set(words)) == len(words)
    for index, word in enumerate(words):
        assert tokenizer.encode(word) == [index]
        assert tokenizer.decode([index]) == word
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, processor.image_token_id) == (0, 2, 4)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_no_text_of_the_dataset_holds_an_unknown_word(processor, split):
    tokenizer, used = processor.tokenizer, set()
    for record in _records(500, split=split):
        text = processor.apply_chat_template(record['messages'])
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert tokenizer.unk_token_id not in encoded['input_ids']
        for index, (start, end) in zip(encoded['input_ids'], encoded['offset_mapping'], strict=True):
            assert text[start:end] == shapes_words()[index]
        used |= set(encoded['input_ids'])
    # All but padding, the unused <s>, and <unk>.
    assert used == set(range(len(shapes_words()))) - {0, 1, 3}


def test_template_is_that_of_llava(processor):
    (record,) = _records(1)
    question, answer = record['messages'][0]['content'][1]['text'], record['gt_answer']
    assert processor.apply_chat_template(record['messages']) == f'USER: <image>\n{question} ASSISTANT: {answer}</s>'
    prompt = processor.apply_chat_template(record['messages'][:1], add_generation_prompt=True)
    assert prompt == f'USER: <image>\n{question} ASSISTANT:'


@pytest.mark.parametrize('size, patch', [(48, 8), (32, 16)])
def test_image_becomes_one_token_per_patch(size, patch):
    processor = shapes_processor(size, patch)
    (record,) = _records(1, image_size=40)
    batch = processor(text='USER: <image>', images=record['images'], return_tensors='pt')
    assert (batch['input_ids'] == processor.image_token_id).sum() == (size // patch) ** 2
    assert batch['pixel_values'].shape == (1, 3, size, size)
    assert set(batch) == {'input_ids', 'attention_mask', 'pixel_values'}


def test_image_of_the_right_size_is_only_scaled(processor):
    (record,) = _records(1, image_size=48)
    pixels = processor(text='<image>', images=record['images'], return_tensors='pt')['pixel_values'][0]
    expected = torch.from_numpy(np.array(record['images'][0])).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)


def test_saved_processor_loads_in_plain_transformers(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, LlavaProcessor)
    records = _records(3)
    texts = [processor.apply_chat_template(record['messages']) for record in records]
    assert [loaded.apply_chat_template(record['messages']) for record in records] == texts
    images = [record['images'][0] for record in records]
    one, two = (p(text=texts, images=images, padding=True, return_tensors='pt') for p in (processor, loaded))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=0)


def test_encoded_labels_are_the_answer_and_its_end(processor):
    dataset = ShapesConversationDataset(
        length=20, pipeline=[dict(type='EncodeConversation', processor=dict(type='ShapesProcessor'))]
    )
    for sample in dataset:
        labels = sample['inputs']['labels']
        assert processor.tokenizer.decode(labels[labels >= 0]) == f'{sample["data_samples"].gt_answer} </s>'


def test_patch_size_must_divide_the_image():
    with pytest.raises(ValueError, match=r'image_size=50 .*patch_size=8'):
        shapes_processor(50, 8)


@pytest.fixture(scope='module')
def janus():
    return TRANSFORMS.build(dict(type='ShapesJanusProcessor', image_size=64, patch_size=8))


def test_the_special_tokens_have_the_ids_that_configs_name(janus):
    tokenizer = janus.tokenizer
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids([janus.image_token, janus.image_start_token]) == [3, 4]
    assert len(tokenizer) == len(shapes_janus_words()) == len(tokenizer.get_vocab())


def test_conversations_are_written_in_known_words(janus):
    encode = EncodeConversation(janus)
    dataset = ShapesConversationDataset(length=40, image_size=64, pipeline=[encode])
    for i in range(40):
        inputs = dataset[i]['inputs']
        ids, labels = inputs['input_ids'].tolist(), inputs['labels']
        assert janus.tokenizer.unk_token_id not in ids
        assert ids.count(3) == 64 and tuple(inputs['pixel_values'].shape) == (1, 3, 64, 64)
        answer = janus.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
        assert answer.strip() == dataset.get_data_info(i)['gt_answer'] and labels[-1] == 2
        assert ids[0] == 1 and ids.count(1) == 1


def test_prompts_are_written_in_known_words_and_end_where_the_image_begins(janus):
    dataset = ShapesGenerationDataset(length=20, image_size=64, pipeline=[EncodeGeneration(janus)])
    for i in range(20):
        inputs = dataset[i]['inputs']
        words = janus.tokenizer.convert_ids_to_tokens(inputs['input_ids'])
        assert words[:3] == ['<｜begin▁of▁sentence｜>', '<|User|>', ':']
        assert words[3:-3] == dataset.get_data_info(i)['prompt'].split()
        assert words[-3:] == ['<|Assistant|>', ':', '<begin_of_image>']
        assert tuple(inputs['target_images'].shape) == (3, 64, 64)


def test_a_size_without_whole_patches_is_refused_for_janus():
    with pytest.raises(ValueError, match='image_size=50 .*patch_size=8'):
        shapes_janus_processor(50, 8)


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
