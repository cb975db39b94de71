"""From a folder of low precision through a step of training to a folder that plain transformers generates with."""

import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

from mergemix_mm.engine.hooks import SavePretrainedHook
from mergemix_mm.families import build_family
from mergemix_mm.models.vlms import HFVisionLanguageModel

pytest.importorskip('transformers')
PARTS = (
    ['projector'],
    ['language_model'],
    ['vision_tower'],
    ['language_model', 'projector'],
    ['vision_tower', 'projector', 'language_model'],
)
ONLY = dict(emu3=[['language_model']])
CASES = [(family, parts) for family in tiny_vlms.ALL_FAMILIES for parts in ONLY.get(family, PARTS)]
IDS = [f'{family}-{"+".join(parts)}' for family, parts in CASES]
NAMES = {torch.bfloat16: 'BF16', torch.float16: 'F16', torch.float32: 'F32'}


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """released(family, dtype) -> a folder as plain transformers writes it, with its processor."""
    folders = {}

    def write(family, dtype):
        import transformers

        if (family, dtype) not in folders:
            folder = folders[family, dtype] = tmp_path_factory.mktemp('released') / f'{family}-{dtype}'
            config = transformers.AutoConfig.for_model(**tiny_vlms.tiny_config(family))
            torch.manual_seed(0)
            model = transformers.AutoModelForImageTextToText.from_config(config).to(getattr(torch, dtype))
            model.save_pretrained(folder)
        return str(folders[family, dtype])

    return write


processor_of = cache(tiny_vlms.tiny_processor)


def samples(answers=('a dog', 'cat')):
    images = [[tiny_vlms.random_image(40, 56, row)] for row in range(len(answers))]
    return [(group, 'what?'[: 3 + row], answer) for row, (group, answer) in enumerate(zip(images, answers))]


def prompts(family, side='right'):
    """Two prompts of unequal length, with an image each."""
    batch = tiny_vlms.tiny_batch(family, [(group, text, '') for group, text, _ in samples()], side)
    return {key: value for key, value in batch.items() if key != 'labels'}


def trained(family, folder, dtype='bfloat16', **options):
    """A tuner after one step, as MMEngine's loop takes it."""
    vlm = dict(type='HFVisionLanguageModel', pretrained=folder, dtype=dtype, **options)
    tuner = MODELS.build(dict(type='VLMTuner', vlm=vlm, processor=processor_of(family)))
    weights = [p for p in tuner.parameters() if p.requires_grad]
    assert {p.dtype for p in weights} == {torch.float32}
    before = [p.detach().clone() for p in weights]
    optim_wrapper = OptimWrapper(torch.optim.AdamW(weights, lr=1e-3))
    tuner.train_step(dict(inputs=tiny_vlms.tiny_batch(family, samples())), optim_wrapper)
    assert sum(not torch.equal(*pair) for pair in zip(weights, before)) > len(weights) // 4
    return tuner


def save(tuner, folder, **options):
    """What the hook does at the end of a run."""
    hook = SavePretrainedHook(str(folder), **options)
    runner = SimpleNamespace(model=tuner, work_dir=str(folder), logger=MMLogger.get_current_instance())
    hook.before_train(runner)
    hook.after_train(runner)
    return folder


def header(path):
    """Name -> dtype of its floats, as a safetensors file says it."""
    with path.open('rb') as file:
        content = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
    found = {name: entry['dtype'] for name, entry in content.items() if name != '__metadata__'}
    return {name: dtype for name, dtype in found.items() if dtype in ('F64', *NAMES.values())}


def dtypes_of(content):
    """What a config says, in all its parts."""
    found = [value for key, value in content.items() if key in ('dtype', 'torch_dtype')]
    return set(found).union(*(dtypes_of(value) for value in content.values() if isinstance(value, dict)))


def check_folder(folder, dtype):
    """One dtype in the files, in the config, and in what plain transformers makes of them; returns that."""
    from transformers import AutoModelForImageTextToText

    assert set(header(folder / 'model.safetensors').values()) == {NAMES[dtype]}
    content = json.loads((folder / 'config.json').read_text())
    assert dtypes_of(content) == {str(dtype).removeprefix('torch.')}
    assert {'dtype', 'torch_dtype'} & set(content)
    plain, info = AutoModelForImageTextToText.from_pretrained(folder, dtype='auto', output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys']
    assert {value.dtype for value in plain.parameters()} == {dtype}
    return plain.eval()


def check_generation(folder, family, plain, dtype):
    """Plain transformers and this package answer the same from the folder."""
    again = HFVisionLanguageModel(pretrained=str(folder), dtype=dtype).eval()
    batch = prompts(family, 'left')
    given = tiny_vlms.library_inputs(again, batch, dtype)
    options = dict(max_new_tokens=4, min_new_tokens=4)
    build_family(plain)  # Mends the positions of SmolVLM's patches under transformers 4.
    expected = plain.generate(**given, **options, do_sample=False)[:, batch['input_ids'].size(1) :]
    assert torch.equal(again.generate(batch, **options).sequences, expected)


@pytest.mark.parametrize('family, parts', CASES, ids=IDS)
def test_what_trained_from_bfloat16_is_saved_in_it_and_plain_transformers_answers_the_same(
    released, tmp_path, family, parts
):
    tuner = trained(family, released(family, 'bfloat16'), trainable=parts)
    folder = save(tuner, tmp_path / 'saved')
    check_generation(folder, family, check_folder(folder, torch.bfloat16), torch.bfloat16)
    generation = 'generation_config.json'
    ids = [
        json.loads(Path(one, generation).read_text())['eos_token_id'] for one in (folder, released(family, 'bfloat16'))
    ]
    assert ids[0] == ids[1] == tiny_vlms.token_id(family, tiny_vlms.SPECIAL_TOKENS[family][2])
    # The masters stay, and are what is saved.
    assert {p.dtype for p in tuner.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_float32_is_kept_on_demand(released, tmp_path, family):
    tuner = trained(family, released(family, 'bfloat16'))
    folder = save(tuner, tmp_path / 'saved', dtype='float32')
    plain = check_folder(folder, torch.float32)
    check_generation(folder, family, plain, torch.float32)
    found = plain.state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in tuner.vlm.model.state_dict().items())
    assert not torch.equal(plain.lm_head.weight.bfloat16().float(), plain.lm_head.weight)


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_float16_is_saved_in_it(released, tmp_path, family):
    tuner = trained(family, released(family, 'float16'), dtype='float16')
    folder = save(tuner, tmp_path / 'saved')
    check_generation(folder, family, check_folder(folder, torch.float16), torch.float16)


@pytest.mark.parametrize('parts', [['language_model'], ['vision_tower', 'projector', 'language_model']], ids='+'.join)
@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_adapters_that_trained_beside_bfloat16_answer_in_plain_peft_and_merged(released, tmp_path, family, parts):
    import transformers
    from peft import PeftModel

    if family == 'emu3' and len(parts) > 1:
        pytest.skip('it has no tower')
    base = released(family, 'bfloat16')
    tuner = trained(family, base, trainable=parts, lora=dict(r=2, init_lora_weights=False))
    folder = save(tuner, tmp_path / 'adapters')
    assert set(header(folder / 'adapter_model.safetensors').values()) == {'F32'}  # As they trained.
    batch, options = prompts(family, 'left'), dict(max_new_tokens=4, min_new_tokens=4)
    given = tiny_vlms.library_inputs(tuner.vlm, batch, torch.bfloat16)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype='auto')
    plain = PeftModel.from_pretrained(plain, folder).eval()
    assert plain.generate(**given, **options, do_sample=False).size(1) == batch['input_ids'].size(1) + 4
    # Its weights are those that trained, up to the precision of what it keeps them in.
    wanted, found = tuner.vlm.model.state_dict(), plain.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in wanted.items())

    tuner.vlm.model = tuner.vlm.model.merge_and_unload()
    folder = save(tuner, tmp_path / 'merged')
    check_generation(folder, family, check_folder(folder, torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_the_processor_and_its_template_stand_beside_the_model_and_training_goes_on_from_the_folder(
    released, tmp_path, monkeypatch, family
):
    from transformers import AutoProcessor

    tuner = trained(family, released(family, 'bfloat16'))
    template = '{% for message in messages %}{{ message["content"] }}!{% endfor %}'
    monkeypatch.setattr(tuner.processor, 'chat_template', template)  # Tests share it.
    folder = save(tuner, tmp_path / 'saved')
    again = AutoProcessor.from_pretrained(folder)
    assert again.apply_chat_template([dict(role='user', content='hello')]) == 'hello!'
    tuner.vlm.family.complete_processor(again)
    image, token = tiny_vlms.random_image(28, 28, 0), tiny_vlms.image_token(family)
    given = dict(text=[f'{token}what?'], images=tiny_vlms.one_per_text(family, [image]), return_tensors='pt')
    assert torch.equal(again(**given)['input_ids'], tuner.processor(**given)['input_ids'])
    assert again.tokenizer.eos_token == tiny_vlms.SPECIAL_TOKENS[family][2]
    before = {name: value.bfloat16() for name, value in tuner.vlm.state_dict().items() if value.is_floating_point()}
    more = trained(family, str(folder))
    moved = [name for name, value in before.items() if not torch.equal(more.vlm.state_dict()[name].bfloat16(), value)]
    trainable = {name for name, p in more.vlm.named_parameters() if p.requires_grad}
    assert moved and set(moved) <= trainable | {'model.lm_head.weight'}


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_a_checkpoint_becomes_the_folder_that_the_hook_wrote(released, tmp_path, family):
    import runpy

    tool = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'model_converters' / 'save_pretrained.py'))
    tuner = trained(family, released(family, 'bfloat16'))
    folder = save(tuner, tmp_path / 'saved')
    weights = {f'module.{name}': value for name, value in tuner.state_dict().items()}
    torch.save(dict(state_dict=weights), tmp_path / 'iter_1.pth')
    vlm = dict(type='HFVisionLanguageModel', pretrained=released(family, 'bfloat16'), dtype='bfloat16')
    cfg = Config(dict(model=dict(type='VLMTuner', vlm=vlm)))
    tool['convert'](cfg, tmp_path / 'iter_1.pth', tmp_path / 'converted')
    for name in ('model.safetensors', 'config.json', 'generation_config.json'):
        assert (tmp_path / 'converted' / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_chat_gives_the_tokens_of_plain_transformers_from_the_folder(released, tmp_path, monkeypatch, family):
    """Plain transformers reads the prompt in the documented format through its own processor."""
    import runpy

    from transformers import AutoModelForImageTextToText, AutoProcessor

    tool = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'chat.py'))
    tuner = trained(family, released(family, 'float32'), dtype='float32')
    folder, image, answers = save(tuner, tmp_path / 'saved'), tiny_vlms.random_image(40, 56, 0), []
    image.save(tmp_path / 'image.png')
    monkeypatch.setattr(HFVisionLanguageModel, 'generate', record(HFVisionLanguageModel.generate, answers))
    command = [folder, tmp_path / 'image.png', '-q', 'What?', '--max-new-tokens', 8, '--device', 'cpu']
    tool['main']([*map(str, command)])

    plain, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    views = build_family(plain)  # Mends the positions of SmolVLM's patches under transformers 4.
    views.complete_processor(processor)
    text = re.split(r'\[ ?A', tiny_vlms.WRITTEN[family])[0].replace('Q', 'What?')
    text = text.removeprefix(views.preamble(processor))  # The processor writes it again.
    if views.is_prefix_model:  # The processor writes all but the words.
        text = f'{tiny_vlms.image_token(family)}What?'
    shown = [[image]] if views.nests_images else [image]
    # As apply_chat_template of the library decides it.
    adds = not text.startswith(processor.tokenizer.bos_token or '\0')
    given = processor(text=[text], images=shown, add_special_tokens=adds, return_tensors='pt')
    given = tiny_vlms.library_inputs(tuner.vlm, dict(given))
    tokens = plain.generate(**given, max_new_tokens=8, do_sample=False)[:, given['input_ids'].size(1) :]
    assert len(answers) == 1 and torch.equal(answers[0].sequences, tokens)


def record(function, results):
    """The function, which also keeps its results."""

    def call(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    return call


@pytest.mark.parametrize('wrap', [MMDistributedDataParallel, torch.compile, 'both'], ids=['ddp', 'compiled', 'both'])
def test_wrapped_tuners_are_saved_as_they_are_without(released, tmp_path, wrap):
    tuner = trained('llava', released('llava', 'bfloat16'))
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.compile(MMDistributedDataParallel(tuner)) if wrap == 'both' else wrap(tuner)
        folder = save(wrapped, tmp_path / 'wrapped')
    finally:
        torch.distributed.destroy_process_group()
    check_folder(folder, torch.bfloat16)
    plain = save(tuner, tmp_path / 'plain')
    assert (folder / 'model.safetensors').read_bytes() == (plain / 'model.safetensors').read_bytes()


UNIFIED = dict(
    janus=('JanusModel', [['generation'], ['projector', 'language_model', 'generation']]),
    emu3=('Emu3Model', [['language_model']]),
)


@pytest.mark.parametrize('family, parts', [(name, one) for name, (_, both) in UNIFIED.items() for one in both], ids=str)
def test_what_learnt_to_draw_from_bfloat16_draws_the_same_from_its_folder(released, tmp_path, family, parts):
    kind = UNIFIED[family][0]
    vlm = dict(type=kind, pretrained=released(family, 'bfloat16'), dtype='bfloat16', trainable=parts)
    tuner = MODELS.build(dict(type='UnifiedTuner', vlm=vlm, drop_prompt=0.0))
    end = '<begin_of_image>' if family == 'janus' else '<|image start|>3*4<|image token|>'
    given = dict(add_special_tokens=False, return_tensors='pt', padding=True)
    batch = dict(processor_of(family).tokenizer([f'dog{end}', f'red cat{end}'], **given))
    size = (8, 8) if family == 'janus' else (6, 8)
    batch['target_images'] = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weights = [p for p in tuner.parameters() if p.requires_grad]
    optim_wrapper = OptimWrapper(torch.optim.AdamW(weights, lr=1e-3))
    tuner.train_step(dict(inputs=batch), optim_wrapper)
    folder = save(tuner, tmp_path / 'saved')
    check_folder(folder, torch.bfloat16)
    prompt = {key: batch[key] for key in ('input_ids', 'attention_mask')}
    again = MODELS.build(dict(type=kind, pretrained=str(folder), dtype='bfloat16', trainable=[])).eval()
    for weight in weights:
        weight.data = weight.data.bfloat16()
    drawn = [one.generate_image(prompt, temperature=0) for one in (again, tuner.vlm.eval())]
    assert torch.equal(*drawn)


@pytest.mark.parametrize('parts', [['projector'], ['language_model', 'projector'], ['vision_tower']], ids='+'.join)
def test_sphinx_that_trained_beside_bfloat16_has_a_language_model_of_one_dtype(tmp_path, parts):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = tiny_sphinx.sphinx_config(trainable=parts)
    config['language_model']['dtype'] = 'bfloat16'
    config['backbone']['encoders'][0]['frozen'] = False
    tuner = MODELS.build(dict(type='VLMTuner', vlm=config))
    image = tiny_vlms.random_image(40, 40, 0)
    given = [([image], 'what is it?', 'a dog'), ([image], 'a', 'b')]
    batch = tiny_sphinx.batch(tiny_sphinx.processor(), given)['inputs']
    optim_wrapper = OptimWrapper(torch.optim.AdamW([p for p in tuner.parameters() if p.requires_grad], lr=1e-3))
    tuner.train_step(dict(inputs=batch), optim_wrapper)
    folder = save(tuner, tmp_path / 'saved')
    inner = folder / 'language_model'
    assert set(header(inner / 'model.safetensors').values()) == {'BF16'}
    assert dtypes_of(json.loads((inner / 'config.json').read_text())) == {'bfloat16'}
    plain = AutoModelForCausalLM.from_pretrained(inner, dtype='auto').eval()
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert plain.generate(input_ids=batch['input_ids'][:, -3:], max_new_tokens=2, min_new_tokens=2).size(1) == 5
    # Neck, markers and encoders keep what they learnt.
    options = dict(pretrained=str(folder), language_model=dict(pretrained=str(inner), dtype='bfloat16'))
    again = MODELS.build(config | options | dict(trainable=[])).eval()
    found, wanted = again.state_dict(), tuner.vlm.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in wanted.items())
    prompt = tiny_sphinx.batch(tiny_sphinx.processor(), given, generate=True)['inputs']
    assert again.generate(prompt, max_new_tokens=3, min_new_tokens=3).sequences.shape == (2, 3)
