import pytest
import tiny_vlms
import torch
from mmengine.runner.checkpoint import load_state_dict

from mergemix_mm.models.vlms.adapting import load_adapters, part_modules


def gradients(vlm):
    return {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
@pytest.mark.parametrize('part', ['vision_tower', 'projector', 'language_model'])
def test_only_trainable_parts_take_gradients_and_train_mode(make, batch_of, loss_of, family, part):
    vlm = make(family, trainable=[part])
    vlm.eval().train()
    loss_of(vlm, batch_of(family)).backward()
    paths = vlm.family.parts[part]
    inside = [path for other in vlm.family.parts.values() for path in other if other is not paths]
    inside = [path for path in inside if any(path.startswith(f'{outer}.') for outer in paths)]

    def is_part(name):
        return name.startswith(tuple(paths)) and not name.startswith(tuple(inside))

    found = gradients(vlm.model)
    assert found and all(is_part(name) for name in found)
    assert all(p.requires_grad == is_part(name) for name, p in vlm.model.named_parameters())
    modes = {name: module.training for name, module in vlm.model.named_modules() if name}
    assert all(is_part(name) for name, training in modes.items() if training)
    assert all(modes[path] for path in paths if path in modes)
    assert not any(module.training for module in vlm.eval().modules())


def test_an_unknown_part_is_refused_with_those_that_are_there(make):
    with pytest.raises(ValueError, match=r"trainable=\['vision'\].*'language_model', 'projector', 'vision_tower'"):
        make(trainable=['vision'])
    with pytest.raises(ValueError, match='must be a list'):
        make(trainable='projector')


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
@pytest.mark.parametrize('trainable', [['language_model', 'projector'], ['projector'], ['vision_tower']])
def test_gradient_checkpointing_changes_no_gradient(make, batch_of, loss_of, family, trainable):
    batch = batch_of(family)
    results = []
    for checkpointing in (False, True):
        vlm = make(family, trainable=trainable, gradient_checkpointing=checkpointing)
        loss_of(vlm, batch).backward()
        results.append(gradients(vlm))
    plain, checkpointed = results
    assert plain and plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)
    assert sum(float(grad.abs().sum()) for grad in plain.values()) > 0


@pytest.mark.parametrize('lora', [None, dict(r=2)])
@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_a_frozen_tower_keeps_no_activations_with_gradient_checkpointing(make, batch_of, family, lora):
    # Transformers 5 would let its embeddings require gradients, and so all that comes after them.
    vlm = make(family, trainable=['language_model', 'projector'], gradient_checkpointing=True, lora=lora)
    inside = [vlm.family.model.get_submodule(path) for path in part_modules(vlm.family, 'projector')]
    projector = {module for part in inside for module in part.modules()}
    found = []
    for module in vlm.family.vision_tower.modules():
        if module not in projector and not list(module.children()):
            module.register_forward_hook(lambda _, inputs, output: found.append(output))
    vlm.hidden(vlm.prepare(batch_of(family)))
    assert found and not any(one.requires_grad for one in found if torch.is_tensor(one))


@pytest.mark.parametrize('trainable', [['language_model'], ['projector']])
def test_gradient_checkpointing_runs_the_language_models_layers_twice_even_when_frozen(
    make, batch_of, loss_of, trainable
):
    vlm = make(trainable=trainable, gradient_checkpointing=True)
    calls = []
    layer = vlm.family.language_model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(layer.mlp.training))
    loss_of(vlm, batch_of()).backward()
    assert calls == [trainable == ['language_model']] * 2


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
