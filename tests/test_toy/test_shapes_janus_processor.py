"""Tests of the tiny Janus' processor: words are tokens, and nothing that is drawn is unknown."""

import pytest
from mmengine.registry import TRANSFORMS

from mergemix_mm.datasets import (
    EncodeConversation,
    EncodeGeneration,
    ShapesConversationDataset,
    ShapesGenerationDataset,
    shapes_janus_processor,
    shapes_janus_words,
)


@pytest.fixture(scope='module')
def processor():
    return TRANSFORMS.build(dict(type='ShapesJanusProcessor', image_size=64, patch_size=8))


def test_the_special_tokens_have_the_ids_that_configs_name(processor):
    tokenizer = processor.tokenizer
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids([processor.image_token, processor.image_start_token]) == [3, 4]
    assert len(tokenizer) == len(shapes_janus_words()) == len(tokenizer.get_vocab())


def test_conversations_are_written_in_known_words(processor):
    encode = EncodeConversation(processor)
    dataset = ShapesConversationDataset(length=40, image_size=64, pipeline=[encode])
    for i in range(40):
        inputs = dataset[i]['inputs']
        ids, labels = inputs['input_ids'].tolist(), inputs['labels']
        assert processor.tokenizer.unk_token_id not in ids
        assert ids.count(3) == 64 and tuple(inputs['pixel_values'].shape) == (1, 3, 64, 64)
        answer = processor.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
        assert answer.strip() == dataset.get_data_info(i)['gt_answer'] and labels[-1] == 2
        assert ids[0] == 1 and ids.count(1) == 1


def test_prompts_are_written_in_known_words_and_end_where_the_image_begins(processor):
    dataset = ShapesGenerationDataset(length=20, image_size=64, pipeline=[EncodeGeneration(processor)])
    for i in range(20):
        inputs = dataset[i]['inputs']
        words = processor.tokenizer.convert_ids_to_tokens(inputs['input_ids'])
        assert words[:3] == ['<｜begin▁of▁sentence｜>', '<|User|>', ':']
        assert words[3:-3] == dataset.get_data_info(i)['prompt'].split()
        assert words[-3:] == ['<|Assistant|>', ':', '<begin_of_image>']
        assert tuple(inputs['target_images'].shape) == (3, 64, 64)


def test_a_size_without_whole_patches_is_refused():
    with pytest.raises(ValueError, match='image_size=50 must be a multiple of patch_size=8'):
        shapes_janus_processor(50, 8)
