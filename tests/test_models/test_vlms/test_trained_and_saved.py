"""From a folder of low precision through a step of training to a folder that plain transformers generates with."""

import json
from functools import cache
from types import SimpleNamespace

import pytest
import tiny_vlms
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

from mergemix_mm.engine.hooks import SavePretrainedHook
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


def library_inputs(vlm, family, batch):
    """What the library's own model with head takes; Emu3's drops pixels, and is given the codes."""
    if family == 'emu3':
        return dict(input_ids=vlm.family.with_codes(batch), attention_mask=batch['attention_mask'])
    return {key: value for key, value in batch.items() if key != 'original_sizes'}


def check_generation(folder, family, plain, dtype):
    """Plain transformers and this package answer the same from the folder."""
    again = HFVisionLanguageModel(pretrained=str(folder), dtype=dtype).eval()
    batch = prompts(family, 'left')
    given = library_inputs(again, family, batch)
    options = dict(max_new_tokens=4, min_new_tokens=4)
    expected = plain.generate(**given, **options, do_sample=False)[:, batch['input_ids'].size(1) :]
    assert torch.equal(again.generate(batch, **options).sequences, expected)


@pytest.mark.parametrize('family, parts', CASES, ids=IDS)
def test_what_trained_from_bfloat16_is_saved_in_it_and_plain_transformers_answers_the_same(
    released, tmp_path, family, parts
):
    tuner = trained(family, released(family, 'bfloat16'), trainable=parts)
    folder = save(tuner, tmp_path / 'saved')
    check_generation(folder, family, check_folder(folder, torch.bfloat16), torch.bfloat16)
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
    given = library_inputs(tuner.vlm, family, batch)
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
