import pytest
import tiny_vlms
import torch
from mmengine.runner.checkpoint import load_state_dict

from mergemix_mm.models.vlms.lora import part_modules


def gradients(vlm):
    return {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}


def test_lora_trains_adapters_of_the_language_model_and_the_projector(make, batch_of, loss_of):
    vlm = make(lora=dict(r=2, lora_alpha=4), gradient_checkpointing=True)
    # Adapters start at zero output; their second matrix gets the first gradient.
    loss_of(vlm, batch_of()).backward()
    found = [name for name, grad in gradients(vlm).items() if grad.abs().sum() > 0]
    assert {'lora' in name for name in found if 'projector' not in name} == {True}
    projector = [name for name in found if 'projector' in name]
    assert len(projector) == 4 and all('modules_to_save' in name for name in projector)
    adapted = {name.split('.lora_')[0] for name in found if 'lora_B' in name}
    assert len(adapted) == 2 * 7 and all('language_model' in name for name in adapted)
    frozen = [name for name, p in vlm.named_parameters() if not p.requires_grad]
    assert any('vision_tower' in name for name in frozen) and any('lm_head' in name for name in frozen)


def test_lora_takes_named_layers_of_the_language_model_only(make):
    vlm = make(lora=dict(r=2, target_modules=['q_proj']), trainable=['language_model'])
    adapted = [name for name, p in vlm.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 2 and all('language_model' in name and 'q_proj' in name for name in adapted)
    with pytest.raises(ValueError, match=r"target_modules=\['qkv'\].*'q_proj'"):
        make(lora=dict(r=2, target_modules=['qkv']))
    with pytest.raises(ValueError, match="add 'language_model'"):
        make(lora=dict(r=2), trainable=['projector'])


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_lora_saves_adapters_only_and_peft_reloads_them(make, batch_of, tmp_path, family):
    from peft import PeftModel
    from safetensors.torch import load_file

    vlm = make(family, lora=dict(r=2, init_lora_weights=False)).eval()
    projector = part_modules(vlm.family, 'projector')
    with torch.no_grad():  # As if trained.
        [p.add_(0.1) for path in projector for p in vlm.family.model.get_submodule(path).modules_to_save.parameters()]
    batch = batch_of(family, labels=False)
    expected = vlm.family.model(**batch).logits
    vlm.save_pretrained(tmp_path / 'adapters')
    names = set(load_file(tmp_path / 'adapters' / 'adapter_model.safetensors'))
    saved = {path: {name for name in names if path in name} for path in projector}
    assert all(saved.values()) and {name for name in names if 'lora_' not in name} == set().union(*saved.values())

    base = make(family).eval()
    plain = PeftModel.from_pretrained(base.model, tmp_path / 'adapters').eval()
    assert torch.allclose(plain(**batch).logits, expected, atol=1e-6)


@pytest.mark.parametrize('change', ['lost', 'more'])
def test_adapters_of_another_model_are_refused_by_name(make, tmp_path, change):
    from safetensors.torch import load_file, save_file

    from mergemix_mm.models.vlms.lora import load_adapters

    make(lora=dict(r=2)).save_pretrained(tmp_path / 'adapters')
    path = tmp_path / 'adapters' / 'adapter_model.safetensors'
    weights = load_file(path)
    name = next(name for name in weights if 'layers.1' in name)
    weights[name.replace('layers.1', 'layers.7')] = weights.pop(name) if change == 'lost' else weights[name].clone()
    save_file(weights, path)
    with pytest.raises(ValueError, match=r'adapters of another model: it lacks .*\((0|1) in all\).*layers\.7.*\(1\)'):
        load_adapters(make().model, tmp_path / 'adapters')


@pytest.mark.parametrize('adapted', [True, False])
def test_a_checkpoint_with_adapters_and_a_model_without_do_not_pass_for_each_other(make, adapted):
    # MMEngine loads not strictly: it would test or resume a model of which no weight was loaded.
    models = make(lora=dict(r=2)), make()
    model, other = models if adapted else models[::-1]
    checkpoint = {f'vlm.{name}': weight for name, weight in other.state_dict().items()}
    has, lacks = ('model', 'checkpoint') if adapted else ('checkpoint', 'model')
    with pytest.raises(ValueError, match=f'the {has} has adapters of LoRA, the {lacks} has none.*--merge-lora'):
        load_state_dict(torch.nn.ModuleDict(dict(vlm=model)), checkpoint)


def test_checkpointed_adapters_behind_frozen_embeddings_get_the_same_gradients(make, batch_of, loss_of):
    results = []
    for checkpointing in (False, True):
        lora = dict(r=2, init_lora_weights=False)
        vlm = make(lora=lora, trainable=['language_model'], gradient_checkpointing=checkpointing)
        loss_of(vlm, batch_of()).backward()
        results.append(gradients(vlm))
    assert len(results[0]) == 2 * 2 * 7 and results[0].keys() == results[1].keys()
    assert all(torch.allclose(grad, results[1][name], atol=1e-6) for name, grad in results[0].items())
    assert all(grad.abs().sum() > 0 for grad in results[0].values())
