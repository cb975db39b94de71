"""Runs a training step on tensors without content, and adds up its operations and the memory that it holds at its peak.

Fake tensors of torch have shapes, dtypes and storages, but no memory. So a step of any size runs in seconds, through
the same code as in training, and every allocation and release of it is counted.
"""

import math
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

_VALUE = torch.ops.aten._local_scalar_dense.default
_EQUAL = torch.ops.aten.equal.default
_NONZERO = torch.ops.aten.nonzero.default
_CONVOLUTION = torch.ops.aten.convolution.default
# The kernels of attention on a CPU, which torch's own counter does not know: two products of matrices, and five in the
# backward, which computes the weights again.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (2, 0),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (5, 1),
}
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class StepMemory(TorchDispatchMode):
    """Counts the bytes of all storages that are made while the mode is entered, until they are released.

    Tensors with content (token ids, masks, positions) keep it, so that code may look at them. If code looks at the
    value of a tensor without content, it gets True, or 1; two such tensors are never equal; and none of their elements
    is zero or False. So no branch of the step that depends on a value is left out.

    Attributes:
        held (int): Bytes now.
        peak (int): Largest number of bytes so far.
        flops (int): Floating point operations so far of products of matrices, convolutions and attention; a
            multiply-add counts twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.held = self.peak = self.flops = 0
        self._known: set[int] = set()

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor without content. It counts if it is made while the mode is entered."""
        return self.adopt(torch.empty(*shape, dtype=dtype, device='meta'))

    def adopt(self, tensor: Tensor) -> Tensor:
        """A tensor on the meta device becomes one on the CPU without content; it does not count."""
        tensor = FakeTensor(self.fake, tensor.detach(), torch.device('cpu'))
        self._register(tensor, 0)
        return tensor

    def adopt_module(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Give a module on the meta device parameters and buffers without content, in place.

        Args:
            module (nn.Module): The module; shared parameters stay shared.
            dtype (torch.dtype, optional): Of its floating parameters. Defaults to None: as they are.
        """
        made: dict[int, nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in made:
                    value = parameter.detach()
                    value = value.to(dtype) if dtype is not None and value.is_floating_point() else value
                    made[id(parameter)] = nn.Parameter(self.adopt(value), requires_grad=parameter.requires_grad)
                part._parameters[name] = made[id(parameter)]
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_meta:
                    part._buffers[name] = self.adopt(buffer)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        empty = any(isinstance(one, FakeTensor) for one in tree_iter((args, kwargs)))
        # What a value decides: True and 1 take the branches in which a step does its work.
        if empty and function is _VALUE:
            return True if args[0].dtype is torch.bool else 1 if not args[0].is_floating_point() else 1.0
        if empty and function is _EQUAL:
            return False
        if empty and function is _NONZERO:
            result = args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        else:
            if empty and function in _INDEXED:
                args = (args[0], _as_positions(args[1]), *args[2:])
            result = function(*args, **kwargs)
        self.flops += _flops(function, args, kwargs, result)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._register(tensor)
        if empty and function is _CONVOLUTION and result.ndim == 4:
            # Convolutions of images hold a copy of the larger of input and output in another memory layout.
            sizes = (one.numel() * one.element_size() for one in (args[0], result))
            self.peak = max(self.peak, self.held + max(sizes))
        return result

    def _register(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # Views are other Python objects of the same storage, which counts once.
        if key in self._known:
            return
        size = storage.nbytes() if size is None else size
        self._known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


def _as_positions(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Bool indices become positions, since their number must be known. Those without content count as all True."""
    result: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool:
            flags = torch.ones(index.shape, dtype=torch.bool) if isinstance(index, FakeTensor) else index
            result.extend(flags.nonzero().unbind(1))
        else:
            result.append(index)
    return result


def _flops(function, args: tuple, kwargs: dict, result) -> int:
    """Floating point operations of a call; 0 for what is not counted."""
    packet = function._overloadpacket
    if packet in _ATTENTION:
        products, first = _ATTENTION[packet]
        query, key = args[first], args[first + 1]
        return 2 * products * math.prod(query.shape) * key.size(-2)
    return flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
