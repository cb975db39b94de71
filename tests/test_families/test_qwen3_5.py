"""Qwen3.5: layers of linear attention, and thoughts. tests/tiny_vlms/qwen3_5.py brings the tests of all families."""

import pytest
import tiny_vlms
import torch

pytest.importorskip('transformers.models.qwen3_5', reason='of transformers 5 only')
from mergemix_mm.datasets.conversations.chat_template import find_chat_template
from mergemix_mm.models import HFVisionLanguageModel
from mergemix_mm.models.attention import InteractionRecorder

QUESTION = dict(role='user', content=[dict(type='image'), dict(type='text', text='Q')])


def build(**options):
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config('qwen3_5'), **options)


def test_only_layers_of_softmax_attention_are_recorded():
    vlm = build()
    assert InteractionRecorder(vlm).layers == (1, 3)
    assert InteractionRecorder(vlm, [3]).layers == (3,)
    message = r'layers=\[1, 2\] of Qwen3_5TextModel: \[2\] have no softmax attention.*4 layers are allowed, \[1, 3\]$'
    with pytest.raises(ValueError, match=message):
        InteractionRecorder(vlm, [1, 2])


def test_adapters_reach_the_projections_of_linear_attention():
    vlm = build(trainable=['language_model'], lora=dict(r=2))
    batch = tiny_vlms.mixed_batch('qwen3_5')
    vlm.hidden(batch)[batch['labels'] != -100].square().mean().backward()
    trained = {name.split('.lora_')[0].split('.layers.')[1] for name, p in vlm.named_parameters() if p.grad is not None}
    linear = ('in_proj_qkv', 'in_proj_z', 'in_proj_b', 'in_proj_a', 'out_proj')
    assert {f'{layer}.linear_attn.{name}' for layer in (0, 2) for name in linear} <= trained
    assert {f'{layer}.self_attn.{name}_proj' for layer in (1, 3) for name in 'qkvo'} <= trained


def test_an_answer_after_left_padding_is_that_of_its_prompt_alone():
    """Linear attention keeps a state and a convolution, which padding must not enter."""
    vlm = build().eval()
    samples = [([tiny_vlms.random_image(64, 96, 0)], 'which of these is it?', ''), ([], 'a', '')]
    options = dict(max_new_tokens=8, min_new_tokens=8)
    together = vlm.generate(tiny_vlms.tiny_batch('qwen3_5', samples, 'left'), **options)
    for row, sample in enumerate(samples):
        alone = vlm.generate(tiny_vlms.tiny_batch('qwen3_5', [sample]), **options)
        assert torch.equal(together.sequences[row], alone.sequences[0])
        torch.testing.assert_close(together.logps[row], alone.logps[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize('own', ['thoughts by default', 'no thoughts by default', 'thoughts only'])
def test_the_prompt_of_the_released_template_tells_it_from_qwen3_vl(own):
    processor = tiny_vlms.tiny_processor('qwen3_5')
    told = 'enable_thinking is defined and enable_thinking is false'
    assert told in processor.chat_template
    if own == 'no thoughts by default':  # As that of the smaller models.
        processor.chat_template = processor.chat_template.replace(told, 'enable_thinking is not true')
    if own == 'thoughts only':
        processor.chat_template = processor.chat_template.replace(told, 'false')
        with pytest.raises(ValueError, match='writes a prompt unlike any here'):
            find_chat_template(processor)
        return
    template = find_chat_template(processor)
    assert template.name == 'qwen3_5'
    prompt, _ = template.render([QUESTION], generation_prompt=True)
    assert prompt.endswith('<|im_start|>assistant\n<think>\n\n</think>\n\n')


def test_a_batch_whose_length_is_no_multiple_of_a_chunk_is_the_same():
    """Linear attention works in chunks of 64 tokens."""
    vlm = build().eval()
    short = tiny_vlms.tiny_batch('qwen3_5', [([], 'a' * 60, ' b')])
    long = tiny_vlms.tiny_batch('qwen3_5', [([], 'a' * 60, ' b' + 'c' * 70)])
    with torch.no_grad():
        found, expected = vlm.hidden(short), vlm.hidden(long)[:, : short['input_ids'].size(1)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
