"""The spans of interaction intensity, token by token, for the families as their processors write them."""

import pytest
import tiny_vlms
import torch

from mergemix_mm.datasets import EncodeConversation, EncodeGeneration, UnifiedCollate
from mergemix_mm.models.attention import interaction_spans
from mergemix_mm.models.vlms import IMAGE, MARKER, PAD, TEXT, Emu3Model, HFVisionLanguageModel, JanusModel

UNIFIED = dict(janus=JanusModel, emu3=Emu3Model)
TURNS = [('what is it', 'a dog'), ('and now?', 'cat')]


def model(family):
    torch.manual_seed(0)
    return UNIFIED.get(family, HFVisionLanguageModel)(config=tiny_vlms.tiny_config(family))


def spelled(processor, ids, mask):
    """The tokens of a row where a mask is True, as text; image placeholders and codes become one sign each."""
    tokens = [processor.tokenizer.decode([token]) for token in ids[mask].tolist()]
    is_image = [token == str(processor.image_token) or token.startswith('<|visual token') for token in tokens]
    return ''.join('#' if image else token for token, image in zip(tokens, is_image, strict=True))


def understanding(family, side):
    """The batch of one conversation of two turns with an image and one of text alone, if the family can."""
    processor = tiny_vlms.tiny_processor(family)
    encode, image = EncodeConversation(processor), tiny_vlms.random_image(56, 56, 0)
    samples = []
    for turns, images in ((TURNS, [image]), (TURNS[:1], [])):
        messages = []
        for question, answer in turns:
            content = [dict(type='image')] * len(images[: not messages]) + [dict(type='text', text=question)]
            messages.append(dict(role='user', content=content))
            messages.append(dict(role='assistant', content=[dict(type='text', text=answer)]))
        samples.append(encode(dict(messages=messages, images=images)))
    return processor, UnifiedCollate(side)(samples)['inputs']


ENDS = dict(llava='</s>', janus='<｜end▁of▁sentence｜>', qwen2_5_vl='<|im_end|>', emu3='<|extra_204|>')


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', ENDS)
def test_understanding_goes_from_all_answers_with_their_end_tokens_to_the_image_tokens(family, side):
    vlm, (processor, batch) = model(family), understanding(family, side)
    prepared = vlm.prepare(batch)
    modality, labels = vlm.modality(prepared), prepared['labels']
    queries, keys = interaction_spans('und', modality, labels)
    texts = [spelled(processor, ids, mask) for ids, mask in zip(prepared['input_ids'], queries)]
    end = ENDS[family]
    assert [text.replace(' ', '') for text in texts] == [f'adog{end}cat{end}', f'adog{end}']
    images = spelled(processor, prepared['input_ids'][0], keys[0])
    assert len(images) > 3 and set(images) == {'#'} and not keys[1].any()
    assert images.count('#') == int((modality[0] == IMAGE).sum())


PROMPTS = ('a red ring', 'dog')
TEXTS = dict(
    janus=[f'<｜begin▁of▁sentence｜><|User|>: {prompt}\n\n<|Assistant|>:' for prompt in PROMPTS],
    emu3=[f'<|extra_203|>{prompt}' for prompt in PROMPTS],
)


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', UNIFIED)
def test_generation_goes_from_image_tokens_to_the_prompt_with_bos_and_template(family, side):
    vlm, processor = model(family), tiny_vlms.tiny_processor(family)
    encode, image = EncodeGeneration(processor, image_size=8), tiny_vlms.random_image(8, 8, 0)
    batch = UnifiedCollate(side)([encode(dict(prompt=prompt, images=[image])) for prompt in PROMPTS])['inputs']
    prepared = vlm.prepare(batch)
    queries, keys = interaction_spans('gen', vlm.modality(prepared), prepared['labels'])
    assert torch.equal(queries, prepared['labels'] != -100) and (queries.sum(1) == 16).all()
    assert [spelled(processor, *row) for row in zip(prepared['input_ids'], keys)] == TEXTS[family]
    dropped, unchanged = interaction_spans('gen', vlm.modality(prepared), prepared['labels'], torch.tensor([1, 0]) > 0)
    assert dropped.sum(1).tolist() == [0, 16] and torch.equal(unchanged, keys)


def test_markers_and_padding_are_in_no_span():
    modality = torch.tensor([[TEXT, MARKER, IMAGE, MARKER, TEXT, PAD]])
    labels = torch.tensor([[-100, -100, 7, -100, 5, -100]])
    queries, keys = interaction_spans('gen', modality, labels)
    assert queries.int().tolist() == [[0, 0, 1, 0, 0, 0]] and keys.int().tolist() == [[1, 0, 0, 0, 1, 0]]
    queries, keys = interaction_spans('und', modality, labels)
    assert queries.int().tolist() == [[0, 0, 1, 0, 1, 0]] and keys.int().tolist() == [[0, 0, 1, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"task='edit' must be 'gen' or 'und'"):
        interaction_spans('edit', modality, labels)
