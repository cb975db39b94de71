import json
from pathlib import Path

import pytest
import tiny_vlms
import torch


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('model_converters/compose_llava')


def save_tokenizer(folder):
    """A byte tokenizer that pads with <unk>, as Vicuna's does: 259 tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaTokenizerFast

    names = ['<unk>', '<s>', '</s>']
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(names + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    LlamaTokenizerFast(tokenizer_object=tokenizer, pad_token='<unk>', legacy=False).save_pretrained(folder)


def save_language(folder, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = tiny_vlms.tiny_config('llava')['text_config'] | dict(vocab_size=259, bos_token_id=1, eos_token_id=2)
    dtype = options.pop('dtype', torch.float32)
    language = LlamaForCausalLM(LlamaConfig(**config | options)).to(dtype).eval()
    language.save_pretrained(folder)
    save_tokenizer(folder)
    return language


def save_vision(folder, family='llava', image_size=28):
    import transformers

    config = dict(tiny_vlms.tiny_config(family)['vision_config'])
    prefix = 'CLIP' if config.pop('model_type') == 'clip_vision_model' else 'Siglip'
    config.pop('vision_use_head', None)
    vision = getattr(transformers, f'{prefix}VisionModel')(getattr(transformers, f'{prefix}VisionConfig')(**config))
    vision.save_pretrained(folder)
    sizes = dict(size=dict(height=image_size, width=image_size))
    if prefix == 'CLIP':
        sizes = dict(size=dict(shortest_edge=image_size), crop_size=dict(height=image_size, width=image_size))
    getattr(transformers, f'{prefix}ImageProcessor')(**sizes).save_pretrained(folder)
    return vision.eval()


def load(folder):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def same_weights(module, source):
    weights, expected = module.state_dict(), source.state_dict()
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.parametrize('family', ['llava', 'paligemma'], ids=['clip', 'siglip'])
@pytest.mark.parametrize('tied', [False, True])
def test_tower_and_language_model_are_those_of_the_sources(tool, tmp_path, capsys, family, tied):
    torch.manual_seed(0)
    vision = save_vision(tmp_path / 'vision', family)
    language = save_language(tmp_path / 'language', tie_word_embeddings=tied)
    tool.main([str(tmp_path / name) for name in ('vision', 'language', 'out')])
    assert capsys.readouterr().out == f'Model with a new projector written to {tmp_path / "out"}\n'
    model, processor = load(tmp_path / 'out')
    assert same_weights(model.model.vision_tower, vision)
    assert same_weights(model.model.language_model.layers, language.model.layers)
    ids = torch.arange(20, 40)[None]
    assert torch.equal(model(input_ids=ids).logits[..., :259], language(input_ids=ids).logits)

    # Two new tokens behind the 259, room for 320, and each image token stands for one patch.
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 320
    assert (model.get_input_embeddings().weight is model.lm_head.weight) == tied
    assert processor.tokenizer.convert_tokens_to_ids(['<image>', '<pad>']) == [259, 260]
    assert processor.tokenizer.pad_token_id == model.config.text_config.pad_token_id == 260
    assert model.config.image_token_index == 259
    inputs = processor(text='<image>Hi', images=tiny_vlms.random_image(40, 30, seed=0), return_tensors='pt')
    assert (inputs['input_ids'] == 259).sum() == 16
    assert model(**inputs).logits.isfinite().all()


def test_parts_of_two_dtypes_are_written_in_that_of_the_language_model(tool, tmp_path):
    """CLIP is float32 on the hub, and language models are bfloat16."""
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    vision = save_vision(tmp_path / 'vision')
    save_language(tmp_path / 'language', dtype=torch.bfloat16)
    tool.main([str(tmp_path / name) for name in ('vision', 'language', 'out')])
    assert {value.dtype for value in load_file(tmp_path / 'out' / 'model.safetensors').values()} == {torch.bfloat16}
    content = json.loads((tmp_path / 'out' / 'config.json').read_text())
    parts = (content, content['text_config'], content['vision_config'])
    assert [part['dtype'] for part in parts] == ['bfloat16'] * 3
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / 'out', dtype='auto'),
        load(tmp_path / 'out')[1],
    )
    assert same_weights(model.model.vision_tower, vision.bfloat16())
    inputs = processor(text='<image>Hi', images=tiny_vlms.random_image(40, 30, seed=0), return_tensors='pt')
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).size(1) == inputs['input_ids'].size(1) + 2


def test_new_embeddings_projector_and_template_are_usable_for_training(tool, tmp_path):
    from mergemix_mm.datasets.transforms import EncodeConversation
    from mergemix_mm.models.vlms import HFVisionLanguageModel

    save_vision(tmp_path / 'vision')
    save_language(tmp_path / 'language')
    tool.main([str(tmp_path / name) for name in ('vision', 'language', 'out')])
    vlm = HFVisionLanguageModel(str(tmp_path / 'out'), trainable=['projector'])
    processor = load(tmp_path / 'out')[1]
    user = dict(role='user', content=[dict(type='image'), dict(type='text', text='What?')])
    answer = dict(role='assistant', content=[dict(type='text', text='Cat')])
    assert processor.apply_chat_template([user], add_generation_prompt=True) == 'USER: <image>\nWhat? ASSISTANT:'
    sample = EncodeConversation(processor)(dict(messages=[user, answer], images=[tiny_vlms.random_image(28, 28, 0)]))
    labels = sample['inputs']['labels']
    assert processor.decode(labels[labels != -100]) == ' Cat</s>'
    hidden = vlm.hidden(
        {key: sample['inputs'][key][None] for key in ('input_ids', 'attention_mask')}
        | dict(pixel_values=sample['inputs']['pixel_values'])
    )
    vlm.head(hidden).square().mean().backward()
    trained = [name for name, weight in vlm.named_parameters() if weight.grad is not None and weight.grad.any()]
    assert len(trained) == 4 and all('multi_modal_projector' in name for name in trained)


def test_the_seed_decides_the_projector(tool, tmp_path):
    save_vision(tmp_path / 'vision')
    save_language(tmp_path / 'language')
    projectors = []
    for seed in (0, 0, 1):
        tool.main([*(str(tmp_path / name) for name in ('vision', 'language', 'out')), '--seed', str(seed)])
        projectors.append(load(tmp_path / 'out')[0].model.multi_modal_projector)
    assert same_weights(projectors[0], projectors[1]) and not same_weights(projectors[0], projectors[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['language', 'out', 'vision']


def test_options_of_generation_that_cannot_be_saved_are_left_behind(tool, tmp_path):
    save_vision(tmp_path / 'vision')
    save_language(tmp_path / 'language')
    options = dict(bos_token_id=1, eos_token_id=[2, 5], temperature=0.9, top_p=0.6)  # As Vicuna's.
    (tmp_path / 'language' / 'generation_config.json').write_text(json.dumps(options))
    tool.main([str(tmp_path / name) for name in ('vision', 'language', 'out')])
    generation = load(tmp_path / 'out')[0].generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == ([2, 5], 260)
    assert generation.temperature in (None, 1.0)  # Nothing was said: of transformers 5, and of version 4.


def test_a_language_model_keeps_its_own_padding_and_spare_rows(tool, tmp_path):
    save_vision(tmp_path / 'vision')
    save_language(tmp_path / 'language', vocab_size=400)
    tokenizer = tool.load_language(str(tmp_path / 'language'))[1]
    tokenizer.save_pretrained(tmp_path / 'language')
    tool.main([str(tmp_path / name) for name in ('vision', 'language', 'out')])
    model, processor = load(tmp_path / 'out')
    assert len(processor.tokenizer) == 261 and processor.tokenizer.pad_token == '<pad>'
    assert model.lm_head.out_features == 448


def test_unusable_sources_are_refused_and_nothing_is_written(tool, tmp_path):
    from transformers import CohereConfig, CohereForCausalLM

    vision, language, out = (str(tmp_path / name) for name in ('vision', 'language', 'out'))
    save_vision(vision)
    save_language(language)
    with pytest.raises(SystemExit, match='OUT: .* holds other files than a model'):
        tool.main([vision, language, str(tmp_path)])
    with pytest.raises(SystemExit, match=r"VISION: .*language is of model_type='llama'; LLaVA takes one of \['clip'"):
        tool.main([language, language, out])
    with pytest.raises(SystemExit, match='LANGUAGE: AutoModelForCausalLM cannot load'):
        tool.main([vision, vision, out])
    with pytest.raises(SystemExit, match="--chat-template: .*'none' is neither a file nor one of"):
        tool.main([vision, language, out, '--chat-template', 'none'])
    config = tiny_vlms.tiny_config('llava')['text_config'] | dict(model_type='cohere', logit_scale=0.5)
    CohereForCausalLM(CohereConfig(**config)).save_pretrained(language)
    with pytest.raises(SystemExit, match='LANGUAGE: CohereForCausalLM'):
        tool.main([vision, language, out])
    save_vision(vision, image_size=42)
    with pytest.raises(SystemExit, match=r'makes images of .*42.*the tower takes 28 x 28'):
        tool.main([vision, language, out])
    assert not Path(out).exists()
