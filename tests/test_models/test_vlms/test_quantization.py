"""4 bits: which layers have them, QLoRA, generation, checkpoints, and what is refused."""

import pytest
import tiny_sphinx
import tiny_vlms
import torch
import transformers
from mmengine.registry import MODELS

from mergemix_mm.models import HFVisionLanguageModel, VLMTuner
from mergemix_mm.models.attention import InteractionRecorder
from mergemix_mm.models.vlms import IMAGE
from mergemix_mm.models.vlms.quantization import is_quantized

pytest.importorskip('bitsandbytes')
FOUR = dict(quant_method='bitsandbytes', load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True)
TYPES = dict(llava='HFVisionLanguageModel', janus='JanusModel')
every_family = pytest.mark.parametrize('family', TYPES)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """folder(family) -> the folder of a model whose layers are wide enough for a block of 64 weights."""
    made = {}

    def write(family):
        if family not in made:
            config = tiny_vlms.tiny_config(family)
            config['text_config'] |= dict(
                hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1
            )
            if family == 'janus':
                config['vision_config']['projection_dim'] = config['vq_config']['projection_dim'] = 64
            torch.manual_seed(0)
            config = transformers.AutoConfig.for_model(**config)
            made[family] = str(tmp_path_factory.mktemp(family))
            transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(made[family])
        return made[family]

    return write


@pytest.fixture
def build(folder):
    def make(family, **kwargs):
        torch.manual_seed(0)
        options = dict(quantization_config=FOUR, lora=dict(r=4, lora_alpha=16), gradient_checkpointing=True) | kwargs
        return MODELS.build(dict(type=TYPES[family], pretrained=folder(family), **options))

    return make


def frozen(module):
    return {name: value.clone() for name, value in module.state_dict().items() if 'base_layer' in name}


@every_family
def test_only_linear_layers_of_the_decoder_have_four_bits(build, family):
    vlm = build(family, dtype='bfloat16', lora=None, trainable=['projector'])
    for name, parameter in vlm.family.model.named_parameters():
        layer = name.startswith('model.language_model.layers.') and name.endswith('_proj.weight')
        expected = torch.uint8 if layer else torch.bfloat16
        assert parameter.dtype == expected, name
        assert parameter.requires_grad == any(name.startswith(path) for path in vlm.family.parts['projector'])
    assert vlm.loaded_dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_hidden_states_and_logits_are_those_of_the_library_in_four_bits(build, folder, dtype):
    vlm = build('llava', dtype=dtype, lora=None, trainable=[]).eval()
    skipped = ['model.vision_tower', 'model.multi_modal_projector', 'lm_head']
    options = {key: value for key, value in FOUR.items() if key != 'quant_method'}
    options = transformers.BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=skipped)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(
        folder('llava'), quantization_config=options, dtype=dtype
    ).eval()
    for layer in plain.modules():  # As `keep_exact` does it: the path rounds, and needs wider layers.
        layer.support_avx512bf16_for_cpu = False
    batch = tiny_vlms.mixed_batch('llava')
    inputs = {key: batch[key] for key in ('input_ids', 'attention_mask', 'pixel_values')}
    found = vlm.head(vlm.hidden(batch))
    expected = plain(**inputs | dict(pixel_values=inputs['pixel_values'].to(plain.dtype))).logits
    assert torch.allclose(found, expected, atol=1e-5)
    original = HFVisionLanguageModel(folder('llava'), dtype=dtype, trainable=[]).eval()
    difference = (original.head(original.hidden(batch)) - found).float().norm() / found.float().norm()
    assert 0.01 < difference < 0.5


@every_family
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_adapters_learn_on_weights_that_stay_and_a_run_resumes(build, family, dtype, tmp_path):
    tuner = VLMTuner(
        vlm=build(family, dtype=dtype), head=dict(type='SimPOHead'), mixer=dict(type='MergeMix', num_merge=2)
    )
    tuner.init_weights()
    tuner.train()
    before, batch = frozen(tuner), tiny_vlms.mixed_batch(family)
    trained = [one for one in tuner.parameters() if one.requires_grad]
    assert {one.dtype for one in trained} == {torch.float32}
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-2), []
    for step in range(10):
        torch.manual_seed(step)
        found = tuner(batch, mode='loss')
        loss = sum(value for name, value in found.items() if 'loss' in name)
        optimizer.zero_grad()
        loss.backward()
        assert all(one.grad is not None for name, one in tuner.named_parameters() if 'lora_' in name)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    tuner.eval()
    prompts = dict(batch, labels=None)
    answers = tuner.vlm.generate(prompts, max_new_tokens=3).sequences
    assert answers.shape == (4, 3)
    after = frozen(tuner)
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())

    torch.save(tuner.state_dict(), tmp_path / 'checkpoint.pth')
    again = VLMTuner(vlm=build(family, dtype=dtype)).eval()
    found = again.load_state_dict(torch.load(tmp_path / 'checkpoint.pth', weights_only=True))
    assert not found.missing_keys and not found.unexpected_keys
    with torch.no_grad():
        assert torch.equal(again.vlm.hidden(batch), tuner.vlm.hidden(batch))
    assert torch.equal(again.vlm.generate(prompts, max_new_tokens=3).sequences, answers)


def test_attention_is_recorded_on_quantized_layers(build):
    vlm, batch = build('janus'), tiny_vlms.mixed_batch('janus')
    with InteractionRecorder(vlm) as recorder:
        recording = recorder.recording(batch['labels'] != -100, vlm.modality(batch) == IMAGE)
        vlm.train().hidden(batch, **recording.attention_kwargs)
        recording.intensity().sum().backward()
    moved = [name for name, one in vlm.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0]
    assert any('k_proj.lora_B' in name for name in moved)


def test_adapters_are_saved_and_added_to_the_original_weights(build, folder, tmp_path):
    vlm = build('llava')
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if 'lora_B' in name:
                parameter.normal_(std=0.1)
    vlm.save_pretrained(tmp_path / 'adapters')
    assert {path.name for path in (tmp_path / 'adapters').iterdir()} >= {
        'adapter_config.json',
        'adapter_model.safetensors',
    }
    original = build('llava', quantization_config=None)
    original.load_state_dict(vlm.state_dict())
    assert not is_quantized(original)
    original.model = original.model.merge_and_unload()
    original.save_pretrained(tmp_path / 'merged')
    merged = HFVisionLanguageModel(str(tmp_path / 'merged')).state_dict()
    names = ('base_model.model.', 'model.language_model.layers.0.self_attn.q_proj')
    a, b = (vlm.state_dict()[f'model.{"".join(names)}.lora_{side}.default.weight'] for side in 'AB')
    base = HFVisionLanguageModel(folder('llava')).state_dict()[f'model.{names[1]}.weight']
    assert torch.allclose(merged[f'model.{names[1]}.weight'], base + 16 / 4 * b @ a, atol=1e-5)


def test_a_checkpoint_of_other_weights_is_refused(build):
    vlm = build('llava')
    state = vlm.state_dict()
    name = next(name for name in state if name.endswith('base_layer.weight'))
    with pytest.raises(ValueError, match='quantized from other weights, or with other options'):
        vlm.load_state_dict(state | {name: state[name] ^ 1})
    with pytest.raises(ValueError, match='weights of the checkpoint are not quantized, those of the model are'):
        vlm.load_state_dict(build('llava', quantization_config=None).state_dict())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(lora=None), r"trainable=\['language_model', 'projector'\] need lora="),
        (dict(quantization_config=dict(load_in_8bit=True)), "load_in_4bit=None and unknown keys .'load_in_8bit'"),
        (dict(quantization_config=FOUR | dict(quant_method='gptq')), "quant_method='gptq'"),
        (dict(quantization_config=FOUR | dict(bits=4)), r"unknown keys \['bits'\]; allowed are"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(build, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        build('llava', **arguments)
    assert '\n' not in str(error.value)


def test_random_and_quantized_weights_are_not_quantized(folder, tmp_path):
    with pytest.raises(ValueError, match=r'quantization_config=.* needs pretrained='):
        HFVisionLanguageModel(config=tiny_vlms.tiny_config('llava'), quantization_config=FOUR, lora=dict(r=2))
    options = transformers.BitsAndBytesConfig(load_in_4bit=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder('llava'), quantization_config=options)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='holds quantized weights; give the original ones'):
        HFVisionLanguageModel(str(tmp_path), lora=dict(r=2))


def test_a_quantized_model_is_not_written_as_a_whole(build, tmp_path):
    vlm = build('llava', lora=None, trainable=['projector'])
    with pytest.raises(ValueError, match='a model with quantized weights is not written'):
        vlm.save_pretrained(tmp_path / 'model')


def test_the_language_model_of_sphinx_trains_adapters_on_four_bits(tmp_path):
    sizes = tiny_sphinx.language_config() | dict(hidden_size=64, intermediate_size=128, num_key_value_heads=4)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**sizes))
    model.save_pretrained(tmp_path)
    config = tiny_sphinx.sphinx_config(
        language_model=dict(pretrained=str(tmp_path), quantization_config=FOUR), lora=dict(r=2)
    )
    config['neck']['out_channels'] = 64
    vlm = MODELS.build(config)
    assert is_quantized(vlm.family.language_model) and not is_quantized(vlm.head)
    batch = tiny_sphinx.batch(tiny_sphinx.processor(), [([tiny_vlms.random_image(40, 40, 0)], 'what?', 'a')])['inputs']
    vlm.train().hidden(batch).square().mean().backward()
    assert all(one.grad is not None for name, one in vlm.named_parameters() if 'lora_' in name)
    again = MODELS.build(config | dict(language_model=dict(pretrained=str(tmp_path))))
    again.load_state_dict(vlm.state_dict())
