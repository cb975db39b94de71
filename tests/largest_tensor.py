"""Watches how large the tensors of a block become, and how many are computed, for tests of memory and of launches."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LargestTensor(TorchDispatchMode):
    """The most elements that an operation inside of the block has returned, and how many operations compute.

    An operation computes nothing if it returns a view of an input.
    """

    elements = operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given, made = (
            {one.untyped_storage()._cdata for one in tree_iter(some) if isinstance(one, torch.Tensor)}
            for some in ((args, kwargs), result)
        )
        self.operations += bool(made - given) or function._schema.is_mutable
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result
