"""Spans token by token, and InteractionAlignment on a tiny language model: its loss, and what is left out."""

import pytest
import tiny_vlms
import torch

from mergemix_mm.datasets import EncodeConversation, EncodeGeneration, UnifiedCollate
from mergemix_mm.functional import aia_loss
from mergemix_mm.models.attention import InteractionAlignment, interaction_spans
from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.vlms import IMAGE, MARKER, PAD, TEXT, Emu3Model, HFVisionLanguageModel, JanusModel

STAGES = [dict(depth=(0.0, 0.5), target=0.1, delta=0.05), dict(depth=(0.5, 1.0), target=0.7, delta=0.2)]
NTP = torch.tensor(2.0)


def align(model, **kwargs):
    options = dict(targets=dict(und=STAGES, gen=STAGES), weight=3.0)
    return InteractionAlignment(model, AIALoss(**options), **kwargs)


def reference(model, inputs, queries, keys):
    """Intensities [layers, B] from the library's own attention weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation('eager')
    weights = model.model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(before)
    sums = torch.stack([(layer * keys[:, None, None]).sum(-1).mean(1) for layer in weights])
    return (sums * queries).sum(-1) / queries.sum(-1).clamp(min=1)


@pytest.mark.parametrize('layers', [None, (1, 2)])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_loss_is_that_of_the_librarys_own_attention_weights(language_model, padded, side, layers):
    model, (inputs, queries, keys) = language_model(), padded(side)
    alignment = align(model, layers=layers)
    with alignment.recorder:
        model.model(**inputs, **alignment.kwargs(queries, keys))
        found = alignment.loss('und', NTP)
    rows = list(range(4)) if layers is None else list(layers)
    intensity = reference(model, inputs, queries, keys)[rows]
    target, delta = torch.tensor([0.1, 0.1, 0.7, 0.7])[rows], torch.tensor([0.05, 0.05, 0.2, 0.2])[rows]
    assert found['loss_aia_und'].item() == pytest.approx(3 * aia_loss(intensity, target, delta).item(), rel=1e-5)
    assert found['interaction_und'].item() == pytest.approx(intensity.mean().item(), rel=1e-5)
    assert not found['interaction_und'].requires_grad and found['loss_aia_und'].requires_grad
    assert alignment.last.task == 'und' and alignment.last.count == 3
    assert torch.allclose(alignment.last.sums, intensity.sum(1), rtol=1e-5)


def test_samples_without_queries_or_keys_are_left_out(language_model, padded):
    model, (inputs, queries, keys) = language_model(), padded()
    alignment = align(model)
    with alignment.recorder:
        alone = {key: value[1:2] for key, value in inputs.items()}
        model.model(**alone, **alignment.kwargs(queries[1:2], keys[1:2]))
        expected = alignment.loss('gen', NTP)
        queries[0], keys[2] = False, False
        model.model(**inputs, **alignment.kwargs(queries, keys))
        found = alignment.loss('gen', NTP)
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-5)
        assert alignment.last.count == 1
        queries[1] = False
        model.model(**inputs, **alignment.kwargs(queries, keys))
        found = alignment.loss('gen', NTP)
    assert found.keys() == {'loss_aia_gen'} and found['loss_aia_gen'] == 0 and alignment.last.count == 0
    found['loss_aia_gen'].backward()
    assert all(p.grad.eq(0).all() for p in model.model.layers.parameters() if p.grad is not None)


def test_gradient_descends_towards_the_targets(language_model, padded):
    model, (inputs, queries, keys) = language_model(), padded()
    alignment = align(model)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    with alignment.recorder:
        for _ in range(25):
            model.model(**inputs, **alignment.kwargs(queries, keys))
            loss = alignment.loss('und', NTP)['loss_aia_und']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_targets_are_looked_up_at_once(language_model):
    model = language_model()
    assert align(model).curves['gen'] == ([0.1, 0.1, 0.7, 0.7], [0.05, 0.05, 0.2, 0.2])
    with pytest.raises(ValueError, match="task='gen' has no targets"):
        InteractionAlignment(model, AIALoss(dict(und=STAGES)))
    assert list(InteractionAlignment(model, AIALoss(dict(und=STAGES)), tasks=('und',)).curves) == ['und']
    with pytest.raises(ValueError, match='layer 2 of 4 belongs to 0 of the stages'):
        InteractionAlignment(model, AIALoss(dict(und=STAGES[:1])), tasks=('und',))


# Spans, for the families as their processors write them.

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
