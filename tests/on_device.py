"""What tests on a device other than the CPU need: moving whatever holds tensors, and comparing with the CPU."""

import dataclasses
from contextlib import contextmanager

import numpy as np
import torch


def moved(value, device, dtype=None):
    """The same value with its tensors on a device, its floating ones in a dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, torch.nn.Module):
        return value.to(device, dtype)
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: moved(one, device, dtype) for name, one in fields.items()})
    if isinstance(value, dict):
        return type(value)({key: moved(one, device, dtype) for key, one in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(moved(one, device, dtype) for one in value)
    return value


def tensors(value, name='result'):
    """Name and tensor of all that a value holds."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name), f'{name}.{field.name}')
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from tensors(one, f'{name}[{key!r}]')
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from tensors(one, f'{name}[{index}]')


def assert_close_to_cpu(found, expected, device, **tolerance):
    """`found` lies on the device, all of it, and equals what the CPU gave."""
    found, expected = dict(tensors(found)), dict(tensors(expected))
    assert found.keys() == expected.keys() and found
    for name, value in found.items():
        assert value.device.type == device.type, f'{name} is on {value.device}'
        assert value.dtype == expected[name].dtype, f'{name} is {value.dtype}, on the CPU {expected[name].dtype}'
        torch.testing.assert_close(value.cpu(), expected[name], msg=lambda text: f'{name}: {text}', **tolerance)


@contextmanager
def no_waiting(device):
    """Fail where the program waits for the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        if device.type == 'cuda':
            torch.cuda.set_sync_debug_mode('default')


# Of training: the name of an optimizer wrapper, and its dtype.
PRECISIONS = ('float32', 'bfloat16', 'float16')


def allow_amp(device, monkeypatch):
    """MMEngine's wrapper with autocast refuses CPUs: where the device is one, let it take that."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper
    from mmengine.runner import amp

    if device.type == 'cpu':
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', lambda **kwargs: torch.amp.GradScaler('cpu', **kwargs))
        monkeypatch.setattr(amp, 'autocast', lambda dtype=None: torch.autocast('cpu', dtype=dtype or torch.float16))


def optim_wrapper(model, precision, device, monkeypatch, **options):
    """MMEngine's wrapper of AdamW: plain in float32, else with autocast, in float16 with a scaled loss."""
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    if precision == 'float32':
        return OptimWrapper(optimizer, **options)
    allow_amp(device, monkeypatch)
    # The first steps of a dynamic scale may be skipped: it starts at 65536.
    scale = dict(init_scale=64.0) if precision == 'float16' else dict(enabled=False)
    return AmpOptimWrapper(optimizer=optimizer, loss_scale=scale, dtype=precision, **options)


def train_step(model, data, wrapper):
    """One step of MMEngine's; the losses as numbers. Every weight that trains has to move, and to stay finite."""
    before = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
    losses = {name: value.item() for name, value in model.train_step(data, wrapper).items()}
    assert all(np.isfinite(value) for value in losses.values()), losses
    weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert all(one.isfinite().all() for one in weights.values())
    still = [name for name, one in weights.items() if torch.equal(one, before[name])]
    assert len(still) < len(weights) / 2, still
    return losses
