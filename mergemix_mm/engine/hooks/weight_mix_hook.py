"""A hook that starts training from the mixed weights of two models, after SPHINX (https://arxiv.org/abs/2311.07575)."""

from collections import OrderedDict

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ...functional.weight_mix import check_beta, describe, is_mixed, mix_problems, mix_tensors, name_filter
from ...models.vlms.hf.saving import check_whole
from ...utils.wrappers import unwrapped
from ..weights import StoredWeights
from ..weights.files import StoredTensor


@HOOKS.register_module()
class WeightMixHook(Hook):
    """Load beta * real + (1 - beta) * synthetic before the first step, as SPHINX does between its two stages.

    A resumed run keeps its own weights. ``tools/mix_weights.py`` takes the same files, and writes the mix to disk
    instead.

    Args:
        real (str): The model of real data: a checkpoint of the same config, a safetensors file, or a folder of
            transformers.
        synthetic (str): The model of synthetic data, with the same names, shapes and dtypes.
        beta (float): The weight of `real`, in [0, 1]. Defaults to 0.5.
        include (str, optional): Regular expression that is searched in the names of the weights in the files. Only
        names
            in which it is found are mixed; the other weights are those of `real`. Defaults to None: all are mixed.
        exclude (str, optional): Regular expression of names that are not mixed. Defaults to None: mixes all included.
        module (str): The module of the model whose weights the files hold, e.g. ``'vlm.model.language_model'`` for
            folders of a language model. Defaults to '': the whole model.

    Raises:
        ValueError: If `beta` is outside [0, 1] or a regular expression is invalid. When training starts, if a file
        cannot
            be read, or its weights are not those of the module; the error lists all names that do not fit.
        OSError: When training starts, if a file or folder does not exist.
        AttributeError: When training starts, if the model has no such module.
        RuntimeError: When training starts, if the weights are sharded over processes (FSDP).

    Examples:
        >>> custom_hooks = [dict(type='WeightMixHook', real='real/iter_20000.pth', synthetic='syn/iter_20000.pth')]
    """

    def __init__(
        self,
        real: str,
        synthetic: str,
        beta: float = 0.5,
        include: str | None = None,
        exclude: str | None = None,
        module: str = '',
    ) -> None:
        try:
            check_beta(beta)
            self.included = name_filter(include, exclude)
        except ValueError as error:
            raise ValueError(f'WeightMixHook: {error}') from None
        self.real, self.synthetic, self.beta, self.module = real, synthetic, beta, module

    def before_train(self, runner) -> None:
        """Mix the weights, unless the run resumes from its own checkpoint."""
        if runner.iter > 0:
            runner.logger.info(f'WeightMixHook: resumed at iteration {runner.iter}, so no weights are mixed')
            return
        model = unwrapped(runner.model)
        try:
            check_whole(model)
        except RuntimeError:
            raise RuntimeError(
                'WeightMixHook: the weights are sharded over processes. Write the mix with tools/mix_weights.py, start '
                'from it (load_from, or pretrained= of the model), and remove the hook'
            ) from None
        real, synthetic = self._open('real'), self._open('synthetic')
        module = model.get_submodule(self.module)
        problems = mix_problems(real.tensors, synthetic.tensors, self.included, StoredTensor.read)
        problems += _unfit(real.tensors, module)
        if problems:
            raise ValueError(
                f'WeightMixHook: {describe(problems)}\nGive checkpoints of this config, or name the module that they '
                'are of by module=. Weights that include= and exclude= leave out are those of real.'
            )
        mixed = OrderedDict((name, self._mix(name, real, synthetic)) for name in real.tensors)
        if real.versions is not None:
            mixed._metadata = real.versions  # type: ignore[attr-defined]  # torch sets it on its state dicts as well
        module.load_state_dict(mixed, strict=False)  # A file may hold tied weights once.
        number = sum(is_mixed(name, tensor, self.included) for name, tensor in real.tensors.items())
        runner.logger.info(
            f'WeightMixHook: mixed {number} tensors of {self.real} (weight {self.beta}) and {self.synthetic} into '
            f'{self.module or "the model"}; {len(mixed) - number} are those of {self.real}'
        )

    def _open(self, key: str) -> StoredWeights:
        path = getattr(self, key)
        try:
            return StoredWeights(path)
        except (OSError, ValueError) as error:
            raise type(error)(f'WeightMixHook: {key}={path!r}: {error}') from None

    def _mix(self, name: str, real: StoredWeights, synthetic: StoredWeights) -> Tensor:
        own = real.tensors[name].read()
        if not is_mixed(name, own, self.included):
            return own
        return mix_tensors(own, synthetic.tensors[name].read(), self.beta)


def _unfit(tensors: dict[str, StoredTensor], module: nn.Module) -> list[str]:
    """Names that only one of file and module has, or of other shapes, one line each.

    A tied weight needs to be there under only one of its names.
    """
    wanted = module.state_dict()
    loaded = {wanted[name].data_ptr() for name in tensors if name in wanted}
    lines = [f'{name}: not in the model' for name in tensors if name not in wanted]
    lines += [
        f'{name}: only in the model'
        for name, tensor in wanted.items()
        if name not in tensors and not (tensor.numel() and tensor.data_ptr() in loaded)
    ]
    return lines + [
        f'{name}: {list(tensors[name].shape)} in real, {list(tensor.shape)} in the model'
        for name, tensor in wanted.items()
        if name in tensors and tensor.shape != tensors[name].shape
    ]
