import pytest
import tiny_vlms
import torch

from mergemix_mm.models.vlms.freezing import part_modules


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
