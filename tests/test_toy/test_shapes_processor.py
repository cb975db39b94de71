"""Tests of the processor of the drawn conversations."""

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS
from transformers import AutoProcessor, LlavaProcessor

from mergemix_mm.datasets import ShapesConversationDataset, shapes_processor, shapes_words
from mergemix_mm.toy.shapes_processor import SPECIAL_TOKENS


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
    with pytest.raises(ValueError, match=r'image_size=50 must be a multiple of patch_size=8'):
        shapes_processor(50, 8)
