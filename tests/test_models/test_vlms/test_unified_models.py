"""Janus and Emu3: learning to generate images, generating them, and reading them."""

from functools import cache

import pytest
import tiny_vlms
import torch
from mmengine.registry import MODELS

from mergemix_mm.families.nearest_code import nearest_code
from mergemix_mm.functional import answer_logps
from mergemix_mm.models.attention import InteractionRecorder
from mergemix_mm.models.vlms import IMAGE, MARKER, PAD, TEXT, Emu3Model, HFVisionLanguageModel, JanusModel

CLASSES = dict(janus=JanusModel, emu3=Emu3Model)
FAMILIES = tiny_vlms.UNIFIED
PROMPTS = ('a red dog', 'cat')
ROWS, COLUMNS = 2, 4  # Of Emu3's images; those of Janus have 4 x 4 codes.


def build(family, **kwargs):
    torch.manual_seed(0)
    return CLASSES[family](config=tiny_vlms.tiny_config(family), **kwargs)


@cache
def processor(family):
    return tiny_vlms.tiny_processor(family)


def prompts(family, texts=PROMPTS, side='right'):
    """A batch of prompts as the family's own processor writes them."""
    options = dict(padding=True, padding_side=side, return_tensors='pt')
    if family == 'janus':
        texts = [f'<|User|>: {text}\n\n<|Assistant|>:' for text in texts]
        return dict(processor(family)(text=texts, generation_mode='image', **options))
    options.update(ratio=f'{COLUMNS}:{ROWS}', image_area=4 * ROWS * COLUMNS)
    found = processor(family)(text=list(texts), return_for_image_generation=True, **options)
    return {key: found[key] for key in ('input_ids', 'attention_mask')}


def pictures(family, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (8, 8) if family == 'janus' else (2 * ROWS, 2 * COLUMNS)
    return torch.rand(count, 3, *size, generator=generator) * 2 - 1


def generation_batch(family, side='right', texts=PROMPTS):
    return dict(prompts(family, texts, side), target_images=pictures(family, len(texts)), task='gen')


def real(batch, key='input_ids'):
    """The rows of a batch without padding."""
    return [row[mask.bool()] for row, mask in zip(batch[key], batch['attention_mask'])]


def codes_of(vlm, batch, **kwargs):
    """The codes [B, T] that `generate_image` chooses."""
    chosen = []
    decode = vlm.decode_codes
    vlm.decode_codes = lambda codes: chosen.append(codes) or decode(codes)
    try:
        vlm.generate_image(batch, **kwargs)
    finally:
        del vlm.decode_codes
    return chosen[0].flatten(1)


def library_hidden(vlm, family, prompt, codes):
    """Last hidden states [1, L, C] of one prompt and the codes of an image, through the library's own parts."""
    model = vlm.model.model
    if family == 'janus':
        embeds = [model.language_model.embed_tokens(prompt), vlm.model.prepare_embeddings_for_image_generation(codes)]
        return model.language_model(inputs_embeds=torch.cat(embeds)[None]).last_hidden_state
    rows = model.vocabulary_mapping.convert_img2bpe(codes.unflatten(0, (-1, COLUMNS)))
    return model(input_ids=torch.cat([prompt, rows.flatten()])[None]).last_hidden_state


def loss_of(vlm, batch):
    batch = vlm.prepare(batch)
    sums, lengths = answer_logps(vlm.hidden(batch), vlm.head_of(batch), batch['labels'])
    return -sums.sum() / lengths.sum()


@pytest.mark.parametrize('side', ['left', 'right'])
def test_janus_labels_the_codes_of_the_image_behind_the_prompt(side):
    vlm = build('janus')
    given = generation_batch('janus', side)
    batch = vlm.prepare(given)
    codes = vlm.encode_images(given['target_images'])
    assert codes.shape == (2, 16) and len(codes.unique()) > 8
    image = [tiny_vlms.token_id('janus', '<image_placeholder>')] * 16
    for row, prompt in enumerate(real(given)):
        assert real(batch)[row].tolist() == prompt.tolist() + image
        assert real(batch, 'labels')[row].tolist() == [-100] * len(prompt) + codes[row].tolist()
        kinds = vlm.modality(batch)[row][batch['attention_mask'][row] == 1]
        assert kinds.tolist() == [TEXT] * (len(prompt) - 1) + [MARKER] + [IMAGE] * 16
    padding = batch['attention_mask'] == 0
    assert (vlm.modality(batch) == PAD).equal(padding) and (batch['labels'][padding] == -100).all()
    assert padding[:, 0 if side == 'left' else -1].tolist() == [False, True]
    assert given['input_ids'].size(1) + 16 == batch['input_ids'].size(1)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_emu3_labels_the_codes_and_not_the_line_ends(side):
    vlm = build('emu3')
    given = generation_batch('emu3', side)
    batch = vlm.prepare(given)
    codes = vlm.encode_images(given['target_images'])
    assert codes.shape == (2, ROWS, COLUMNS) and len(codes.unique()) > 5
    first, end = (tiny_vlms.token_id('emu3', token) for token in ('<|visual token 000000|>', '<|extra_200|>'))
    for row, prompt in enumerate(real(given)):
        lines = [(first + line).tolist() for line in codes[row]]
        assert real(batch)[row].tolist() == prompt.tolist() + [one for line in lines for one in [*line, end]]
        labels = [one for line in lines for one in [*line, -100]]
        assert real(batch, 'labels')[row].tolist() == [-100] * len(prompt) + labels
        kinds = vlm.modality(batch)[row][batch['attention_mask'][row] == 1].tolist()
        # "START 2*4 CODES" frames the image; in front of it are the beginning of the sequence and the prompt.
        text = 1 + len(PROMPTS[row])
        assert kinds == [TEXT] * text + [MARKER] * 5 + ([IMAGE] * COLUMNS + [MARKER]) * ROWS
    assert (vlm.modality(batch) == PAD).equal(batch['attention_mask'] == 0)


@pytest.mark.parametrize('family', FAMILIES)
def test_preparing_twice_or_with_known_codes_is_the_same(family):
    vlm = build(family)
    given = generation_batch(family)
    once = vlm.prepare(given)
    assert 'labels' not in given and once is not given
    codes = vlm.encode_images(given.pop('target_images'))
    for other in (vlm.prepare(once), vlm.prepare(dict(given, codes=codes))):
        assert all(torch.equal(other[key], once[key]) for key in ('input_ids', 'attention_mask', 'labels', 'codes'))


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', FAMILIES)
def test_hidden_states_are_the_librarys_whatever_the_padding(family, side):
    vlm = build(family).eval()
    given = generation_batch(family, side)
    batch = vlm.prepare(given)
    hidden = vlm.hidden(batch)
    assert torch.equal(vlm.hidden(given), hidden)
    for row, prompt in enumerate(real(given)):
        expected = library_hidden(vlm, family, prompt, batch['codes'][row].flatten())
        assert torch.allclose(hidden[row, batch['attention_mask'][row] == 1], expected[0], atol=2e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_losses_do_not_depend_on_the_side_of_the_padding(family):
    vlm = build(family)
    left, right = (loss_of(vlm, generation_batch(family, side)) for side in ('left', 'right'))
    assert left.item() == pytest.approx(right.item(), rel=1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_code_is_predicted_from_the_position_before_it_and_seen_from_its_own_on(family):
    vlm = build(family).eval()
    given = generation_batch(family, texts=PROMPTS[:1])
    codes = vlm.encode_images(given.pop('target_images'))
    batch = vlm.prepare(dict(given, codes=codes))
    places = (batch['labels'][0] != -100).nonzero()[:, 0].tolist()
    assert places[0] == given['input_ids'].size(1)
    hidden = vlm.hidden(batch)
    logps = vlm.head_of(batch)(hidden[0]).log_softmax(-1)
    expected = sum(logps[place - 1, batch['labels'][0, place]] for place in places)
    assert loss_of(vlm, batch).item() == pytest.approx(-expected.item() / codes.numel(), rel=1e-5)
    for step in (0, 3, 5, codes.numel() - 1):
        other = codes.flatten().scatter_add(0, torch.tensor([step]), torch.tensor([1])) % 32
        moved = (vlm.hidden(vlm.prepare(dict(given, codes=other.view_as(codes)))) - hidden).abs().amax(-1)[0]
        assert moved[: places[step]].max() < 1e-6 < 1e-3 < moved[places[step]]


@pytest.mark.parametrize('family', FAMILIES)
def test_what_is_generated_greedily_is_what_training_would_predict(family):
    vlm = build(family).eval()
    given = prompts(family)
    codes = codes_of(vlm, given, guidance_scale=1, temperature=0)
    shape = (-1, 16) if family == 'janus' else (-1, ROWS, COLUMNS)
    batch = vlm.prepare(dict(given, codes=codes.view(shape)))
    logits = vlm.head_of(batch)(vlm.hidden(batch))
    if family == 'emu3':  # Generation chooses among the codes of the vocabulary.
        first = tiny_vlms.token_id('emu3', '<|visual token 000000|>')
        logits = logits[..., first : first + 32]
    before = (batch['labels'] != -100).roll(-1, dims=1)
    assert torch.equal(logits.argmax(-1)[before].view_as(codes), codes)


def naive_codes(vlm, family, prompt, scale):
    """One prompt without padding, the whole sequence again for every code."""
    blank = vlm.drop_prompts(dict(input_ids=prompt[None]), torch.tensor([True]))['input_ids'][0]
    codes = torch.empty(0, dtype=torch.long)
    for _ in range(16 if family == 'janus' else ROWS * COLUMNS):
        if family == 'emu3' and len(codes) % COLUMNS:
            # The library's mapping knows whole rows only: fill this one up, and look at the place before.
            padded = torch.cat([codes, codes.new_zeros(COLUMNS - len(codes) % COLUMNS)])
            place = -2 - COLUMNS + len(codes) % COLUMNS
        else:
            padded, place = codes, -1
        if len(padded):
            states = [library_hidden(vlm, family, ids, padded)[0, place] for ids in (prompt, blank)]
        else:
            embed = vlm.family.language_model
            states = [embed(input_ids=ids[None]).last_hidden_state[0, -1] for ids in (prompt, blank)]
        given, free = (vlm.code_logits(state) for state in states)
        logits = given if scale is None else free + scale * (given - free)
        codes = torch.cat([codes, logits.argmax()[None]])
    return codes


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_generated_image_is_that_of_a_naive_loop(family, side):
    vlm = build(family).eval()
    given = prompts(family, side=side)
    found = {}
    for scale in (3.0, 1.0, None):
        with torch.no_grad():
            expected = torch.stack([naive_codes(vlm, family, prompt, scale) for prompt in real(given)])
        # Guidance of scale 1 is none.
        found[scale] = codes_of(vlm, given, guidance_scale=scale or 1, temperature=0)
        assert torch.equal(found[scale], expected)
    assert not torch.equal(found[3.0], found[1.0])
    rows = []
    hook = vlm.family.language_model.register_forward_hook(lambda module, args, found: rows.append(len(found[0])))
    vlm.generate_image(given, guidance_scale=1, temperature=0)
    assert set(rows) == {2}
    hook.remove()
    images = vlm.generate_image(given, guidance_scale=3.0, temperature=0)
    grid = (16,) if family == 'janus' else (ROWS, COLUMNS)
    decoded = vlm.model.model.vqmodel.decode(found[3.0].unflatten(1, grid))
    assert torch.equal(images, (decoded / 2 + 0.5).clamp(0, 1))
    assert images.shape == pictures(family).shape and not images.requires_grad


@pytest.mark.parametrize('family', FAMILIES)
def test_images_of_a_batch_are_those_of_its_prompts_alone(family):
    vlm = build(family).eval()
    together = vlm.generate_image(prompts(family), temperature=0)
    alone = [vlm.generate_image(prompts(family, [text]), temperature=0)[0] for text in PROMPTS]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)
    assert not torch.allclose(*alone, atol=1e-2)


@pytest.mark.parametrize('family', FAMILIES)
def test_sampling_follows_its_seed_and_its_temperature(family):
    vlm = build(family).eval()
    given = prompts(family)

    def sample(seed, temperature=1.0):
        generator = torch.Generator().manual_seed(seed)
        return codes_of(vlm, given, guidance_scale=2.0, temperature=temperature, generator=generator)

    state = torch.get_rng_state()
    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))
    assert torch.equal(torch.get_rng_state(), state)
    cold = codes_of(vlm, given, guidance_scale=2.0, temperature=0)
    assert torch.equal(sample(0, temperature=1e-6), cold) and not torch.equal(sample(0), cold)
    with pytest.raises(ValueError, match='temperature=-1 must be 0'):
        vlm.generate_image(given, temperature=-1)


@pytest.mark.parametrize('family', FAMILIES)
def test_generating_while_in_training_changes_neither_image_nor_mode(family):
    """Gradient checkpointing would drop the cache in train mode."""
    expected = build(family).eval().generate_image(prompts(family), temperature=0)
    vlm = build(family, gradient_checkpointing=True)
    modes = [module.training for module in vlm.modules()]
    assert torch.equal(vlm.generate_image(prompts(family), temperature=0), expected)
    assert [module.training for module in vlm.modules()] == modes and any(modes)


@pytest.mark.parametrize('prepared', [False, True])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_dropped_prompt_says_its_length_and_nothing_else(family, prepared):
    vlm = build(family).eval()
    first, second = (generation_batch(family, texts=texts) for texts in (('a red dog', 'cat'), ('two lions', 'cow')))
    if prepared:
        first, second = vlm.prepare(first), vlm.prepare(second)
    dropped = torch.tensor([True, False])
    results = [vlm.drop_prompts(batch, dropped) for batch in (first, second)]
    hidden = [vlm.hidden(batch) for batch in results]
    assert torch.equal(hidden[0][0], hidden[1][0]) and not torch.equal(hidden[0][1], hidden[1][1])
    assert torch.equal(results[0]['input_ids'][1], first['input_ids'][1])
    assert torch.equal(results[0]['attention_mask'], first['attention_mask'])
    batch = vlm.prepare(results[0])
    assert torch.equal(vlm.modality(batch), vlm.modality(first))
    # The beginning of the sequence and what begins the image stay.
    ids, pad = real(batch)[0], tiny_vlms.token_id(family, tiny_vlms.SPECIAL_TOKENS[family][0])
    text = (vlm.modality(batch)[0][batch['attention_mask'][0] == 1] == TEXT).sum()
    assert ids[:text].tolist() == [1] + [pad] * (text - 1)
    assert torch.equal(ids[text:], real(vlm.prepare(first))[0][text:])
    shorter = vlm.drop_prompts(generation_batch(family, texts=('a dog', 'cat')), dropped)
    assert not torch.allclose(vlm.hidden(shorter)[0, -1], hidden[0][0, -1], atol=1e-3)


@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_reach_all_that_generates_and_never_the_vq(family):
    vlm = build(family).train()
    loss_of(vlm, generation_batch(family)).backward()
    trained = {name for name, p in vlm.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    generation = ('generation_embeddings', 'generation_aligner', 'generation_head') if family == 'janus' else ()
    for part in (*generation, 'embed_tokens', 'layers.0.self_attn.q_proj', 'norm'):
        assert any(part in name for name in trained), part
    assert ('lm_head.weight' in trained) == (family == 'emu3')
    frozen = ('vqmodel', 'vision_model')
    assert not any(part in name for name in trained for part in frozen)
    assert all(p.requires_grad != any(part in name for part in frozen) for name, p in vlm.model.named_parameters())


@pytest.mark.parametrize('family', FAMILIES)
def test_training_leaves_the_vq_model_as_it_was(family):
    vlm = build(family).train()
    vq = vlm.model.model.vqmodel
    assert vlm.family.language_model.training and not any(module.training for module in vq.modules())
    before = {name: value.clone() for name, value in vq.state_dict().items()}  # Buffers of its norms included.
    codes = vlm.encode_images(pictures(family))
    graphs = []
    vq.encoder.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    optimizer = torch.optim.SGD([p for p in vlm.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(5):
        loss = loss_of(vlm, generation_batch(family))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and graphs == [False] * 5
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())
    assert torch.equal(vlm.encode_images(pictures(family)), codes)


def test_codes_of_janus_are_nearest_by_angle():
    vlm = build('janus')
    images, vq = pictures('janus', 3), vlm.model.model.vqmodel
    latents = vq.quant_conv(vq.encoder(images)).flatten(2).mT
    latents, codebook = (torch.nn.functional.normalize(x, dim=-1) for x in (latents, vq.quantize.embedding.weight))
    codes = vlm.encode_images(images)
    assert torch.equal(codes, torch.cdist(latents, codebook[None]).argmin(-1))
    vq.quantize.embedding.weight.data.mul_(torch.linspace(0.2, 5, 32)[:, None])
    assert torch.equal(vlm.encode_images(images), codes)


def test_codes_of_emu3_are_the_librarys_some_at_a_time():
    vlm = build('emu3')
    images = pictures('emu3', 3)
    expected = vlm.model.model.vqmodel.encode(images, [images.shape[-2:]] * 3)
    expected = getattr(expected, 'image_tokens', expected)  # Of transformers 5.
    assert torch.equal(vlm.encode_images(images), torch.stack(expected))
    latents, codebook = torch.randn(2, 4, 3, 5), torch.randn(32, 4) * torch.linspace(0.1, 3, 32)[:, None]
    codes = torch.cdist(latents.permute(0, 2, 3, 1), codebook).argmin(-1)
    for chunk_size in (1, 7, 1024):
        assert torch.equal(nearest_code(latents, codebook, chunk_size), codes)


@pytest.mark.parametrize('family', FAMILIES)
def test_codes_are_the_same_under_autocast(family):
    vlm = build(family)
    codes = vlm.encode_images(pictures(family, 4))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(vlm.encode_images(pictures(family, 4)), codes)
        assert loss_of(vlm, generation_batch(family)).isfinite()


@pytest.mark.parametrize('family', FAMILIES)
def test_interaction_of_a_generation_batch_can_be_recorded(family):
    vlm = build(family).eval()
    batch = vlm.prepare(generation_batch(family))
    kinds, expected = vlm.modality(batch), vlm.hidden(batch)
    with InteractionRecorder(vlm.model) as recorder:
        recording = recorder.recording(kinds == IMAGE, kinds == TEXT)
        found = vlm.hidden(batch, **recording.attention_kwargs)
    tokens = kinds != PAD
    assert torch.allclose(found[tokens], expected[tokens], atol=1e-5)
    intensity = recording.intensity()
    assert intensity.shape == (2, 2) and (intensity > 0.05).all() and (intensity < 0.95).all()


@pytest.mark.parametrize('family', FAMILIES)
def test_adapters_train_beside_the_generation_part(family):
    vlm = build(family, lora=dict(r=2))
    loss_of(vlm, generation_batch(family)).backward()
    trained = {name for name, p in vlm.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any('lora_B' in name for name in trained)
    assert any('generation_head' in name for name in trained) == (family == 'janus')
    assert not any('vqmodel' in name or 'embed_tokens' in name for name in trained)
    assert vlm.generate_image(prompts(family), temperature=0).shape == pictures(family).shape


@pytest.mark.parametrize('family', FAMILIES)
def test_a_saved_model_generates_the_same_image_and_is_one_of_the_librarys(family, tmp_path):
    from transformers import AutoModelForImageTextToText

    vlm = build(family).eval()
    expected = vlm.generate_image(prompts(family), temperature=0)
    vlm.save_pretrained(tmp_path / 'model')
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / 'model')
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in vlm.model.state_dict().items())
    again = CLASSES[family](pretrained=str(tmp_path / 'model'), dtype='bfloat16')
    assert again.generate_image(prompts(family), temperature=0).dtype == torch.float32
    again = CLASSES[family](pretrained=str(tmp_path / 'model'))
    assert torch.equal(again.generate_image(prompts(family), temperature=0), expected)


@pytest.mark.parametrize('family', FAMILIES)
def test_conversations_are_read_as_by_the_family_alone(family):
    """And a config builds the model."""
    torch.manual_seed(0)
    vlm = MODELS.build(dict(type=CLASSES[family].__name__, config=tiny_vlms.tiny_config(family))).eval()
    torch.manual_seed(0)
    plain = HFVisionLanguageModel(config=tiny_vlms.tiny_config(family)).eval()
    image = tiny_vlms.random_image(40, 60, 0)
    batch = dict(tiny_vlms.tiny_batch(family, [([image], 'what?', 'a dog'), ([], 'hi', 'cat')]), task='und')
    assert not vlm.is_generation(batch)
    assert torch.equal(vlm.hidden(vlm.prepare(batch)), plain.hidden(plain.prepare(batch)))
    assert torch.equal(vlm.modality(batch), plain.modality(batch))
    assert vlm.head_of(batch) is vlm.head is vlm.model.lm_head
    text = vlm.generate(batch, max_new_tokens=3)
    assert torch.equal(text.sequences, plain.generate(batch, max_new_tokens=3).sequences)


def test_unusable_prompts_and_images_of_janus_are_refused():
    vlm = build('janus')
    given = generation_batch('janus')
    mixed = {**given, 'input_ids': given['input_ids'].clone()}
    mixed['input_ids'][0, given['attention_mask'][0].sum() - 1] = 50
    with pytest.raises(ValueError, match='prompts for images end with tokens .*<begin_of_image>'):
        vlm.prepare(mixed)
    vlm.model.generation_config.generation_kwargs = dict(boi_token_id=4)
    vlm.prepare(given)
    with pytest.raises(ValueError, match=r'instead of <begin_of_image> \(4\)'):
        vlm.generate_image({key: value[:, :-1] for key, value in prompts('janus', PROMPTS[:1]).items()})
    with pytest.raises(ValueError, match=r'\[2, 3, 10, 8\] must be \[B, 3, 8, 8\]'):
        vlm.prepare(dict(given, target_images=torch.zeros(2, 3, 10, 8)))
    with pytest.raises(ValueError, match=r'codes of shape \[2, 9\] must be \[B, 16\]'):
        vlm.prepare(dict(prompts('janus'), codes=torch.zeros(2, 9, dtype=torch.long)))


def test_unusable_prompts_and_images_of_emu3_are_refused():
    vlm = build('emu3')
    given = generation_batch('emu3')
    with pytest.raises(ValueError, match=r'must end with .*found \[.None.\]'):
        vlm.generate_image({key: value[:1, :-1] for key, value in prompts('emu3').items()})
    with pytest.raises(
        ValueError, match=r'announce images of 2\*4 codes, but target_images have codes of shape \[4, 2'
    ):
        vlm.prepare(dict(given, target_images=given['target_images'].mT))
    with pytest.raises(ValueError, match=r'3 x 8 pixels: height and width must be multiples of 2'):
        vlm.prepare(dict(given, target_images=given['target_images'][:, :, :3]))


def test_a_model_of_another_family_is_refused():
    for family, other in (('janus', 'emu3'), ('emu3', 'llava')):
        with pytest.raises(ValueError, match=f"model_type='{other}' was given to a class for '{family}'"):
            CLASSES[family](config=tiny_vlms.tiny_config(other))
    config = tiny_vlms.tiny_config('emu3')
    config['vocabulary_map'] = {'<image>': 99, '<|visual token 000000|>': 1}
    with pytest.raises(ValueError, match=r"lacks \['<\|extra_200\|>', .*tokenizer.get_vocab"):
        Emu3Model(config=config)


def test_emu3_trains_without_dropout_of_attention_weights_unless_asked_for():
    """The library's default is 0.1, of the layers' outputs too."""
    config = tiny_vlms.tiny_config('emu3')
    del config['text_config']['attention_dropout']
    batch = generation_batch('emu3')

    def moved(**kwargs):
        vlm = Emu3Model(config=config, **kwargs).train()
        for layer in vlm.family.language_model.layers:
            assert layer.dropout.p == 0.1
            layer.dropout.p = 0
        return (vlm.hidden(batch) - vlm.hidden(batch)).abs().max()

    assert moved() == 0 < 1e-3 < moved(attention_dropout=0.5)


# Emu3 reads images: it is no member of `tiny_vlms.FAMILIES`, because the library's model with head drops the pixels.


def reading(side='right', sizes=((40, 60), (60, 40))):
    samples = [([tiny_vlms.random_image(*size, seed)], 'what is it?', 'a dog') for seed, size in enumerate(sizes)]
    parts = [tiny_vlms.tiny_batch('emu3', [sample], side) for sample in samples]
    height, width = (max(part['pixel_values'].size(dim) for part in parts) for dim in (2, 3))
    pad = torch.nn.functional.pad
    pixels = [part['pixel_values'] for part in parts]
    pixels = [pad(one, (0, width - one.size(3), 0, height - one.size(2))) for one in pixels]
    batch = {key: [part[key] for part in parts] for key in ('image_sizes', 'original_sizes')}
    batch = {key: torch.cat(value) for key, value in batch.items()} | dict(pixel_values=torch.cat(pixels))
    length = max(part['input_ids'].size(1) for part in parts)
    for key, fill in (('input_ids', 0), ('labels', -100), ('attention_mask', 0)):
        rows = [part[key] for part in parts]
        sides = [(0, length - row.size(1))[:: -1 if side == 'left' else 1] for row in rows]
        batch[key] = torch.cat([pad(row, one, value=fill) for row, one in zip(rows, sides)])
    return batch


@pytest.mark.parametrize('side', ['left', 'right'])
def test_emu3_reads_each_image_as_the_library_reads_it_alone(side):
    vlm = build('emu3').eval()
    batch = reading(side)
    assert batch['image_sizes'].tolist() == [[6, 8], [8, 6]]
    hidden = vlm.hidden(batch)
    for row in range(2):
        alone = tiny_vlms.tiny_batch('emu3', [([tiny_vlms.random_image(*((40, 60), (60, 40))[row], row)],
                                              'what is it?', 'a dog')])  # fmt: skip
        inputs = {key: alone[key] for key in ('input_ids', 'attention_mask', 'pixel_values', 'image_sizes')}
        expected = vlm.model.model(**inputs).last_hidden_state[0]
        assert torch.allclose(hidden[row, batch['attention_mask'][row] == 1], expected, atol=2e-5)


def test_emu3_answers_for_the_image_it_is_given():
    vlm = build('emu3').eval()
    batch = reading()
    clean, (canvases, owners) = vlm.hidden(batch), vlm.canvases(batch)
    assert [list(canvas.shape) for canvas in canvases] == [[3, 6, 8], [3, 8, 6]] and owners.tolist() == [0, 1]
    same = vlm.with_canvases(batch, canvases)
    assert same is not batch and torch.equal(same['pixel_values'], batch['pixel_values'])
    other = vlm.with_canvases(batch, [-canvases[0], canvases[1]])
    moved = (vlm.hidden(other) - clean).abs().amax(-1)
    answers = batch['labels'] != -100
    assert moved[0, answers[0]].min() > 1e-3 and moved[1].max() < 1e-6
    found = vlm.generate(batch, max_new_tokens=4)
    for ids, mask, answer in zip(vlm.family.with_codes(batch), batch['attention_mask'], found.sequences):
        plain = vlm.model.generate(input_ids=ids[mask.bool()][None], max_new_tokens=4, do_sample=False)
        assert torch.equal(plain[0, -4:], answer)
    with pytest.raises(ValueError, match='cannot replace those'):
        vlm.with_canvases(batch, canvases[::-1])


def test_emu3_knows_placeholders_from_line_ends():
    vlm = build('emu3')
    batch = reading()
    kinds = vlm.modality(batch)
    image = [IMAGE] * 4 + [MARKER]
    frame = [MARKER] * 5  # START 3*4 CODES
    assert kinds[0, : 1 + 5 + 15 + 2 + 1].tolist() == [TEXT] + frame + image * 3 + [MARKER] * 2 + [TEXT]
    assert (kinds == IMAGE).sum(1).tolist() == [12, 12]
    cut = dict(batch, input_ids=batch['input_ids'].masked_fill(kinds == MARKER, 50))
    with pytest.raises(ValueError, match='raise max_length'):
        vlm.hidden(cut)


@pytest.mark.parametrize('kind', ['HFVisionLanguageModel', 'Emu3Model'])
def test_emu3_is_tuned_on_mixed_images(kind):
    torch.manual_seed(0)
    vlm = dict(type=kind, config=tiny_vlms.tiny_config('emu3'))
    tuner = dict(type='VLMTuner', vlm=vlm, head=dict(type='SimPOHead', beta=2.0), mixer=dict(type='SwapImages'))
    with pytest.raises(ValueError, match=r'MergeMix cannot score.*mixer=dict\(type="MergeMix", encoder'):
        MODELS.build(dict(tuner, mixer=dict(type='MergeMix')))
    tuner = MODELS.build(tuner)
    losses = tuner(reading(), mode='loss')
    assert losses['loss_sft'] > 0 and losses['loss_simpo'] > 0 and losses['reward_margin'] != 0
    (losses['loss_sft'] + losses['loss_simpo']).backward()
    assert tuner.vlm.model.model.text_model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
