"""The vision half of SPHINX (https://arxiv.org/abs/2311.07575) in other models: a hook that loads it, and a neck."""

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.registry import HOOKS, MODELS
from torch import Tensor, nn

from mergemix_mm.models.backbones import MultiBackbone
from mergemix_mm.models.necks import EmbeddingMixNeck
from mergemix_mm.models.vlms.sphinx.files import VISION_FILE
from mergemix_mm.utils.wrappers import unwrapped

BACKBONE, NECK = 'vision.backbone.', 'vision.neck.'
MARKERS = 'markers.weight'  # They belong to the input of the language model, which a classifier does not have.


@HOOKS.register_module()
class LoadSphinxVisionHook(Hook):
    """Loads neck and encoders of a SPHINX into a model of OpenMMLab that has the same ones, before the first step.

    Encoders that were frozen in SPHINX are not in its folder and keep the weights that the config gives them. A resumed
    run keeps its own weights.

    Args:
        pretrained (str): A folder that ``SavePretrainedHook`` wrote.

    Raises:
        OSError: When training starts, if the folder has no ``vision.safetensors``.
        ValueError: When training starts, if the model does not have exactly one ``MultiBackbone`` and one
            ``EmbeddingMixNeck``, or if weights do not fit. The error lists all that do not.

    Examples:
        >>> custom_hooks = [dict(type='LoadSphinxVisionHook', pretrained='work_dirs/sphinx/pretrained')]
    """

    def __init__(self, pretrained: str) -> None:
        self.pretrained = pretrained

    def before_train(self, runner) -> None:
        """Load the weights, unless the run resumes from a checkpoint."""
        if runner.iter > 0:
            runner.logger.info(f'LoadSphinxVisionHook: resumed at iteration {runner.iter}, so nothing is loaded')
            return
        kept = load_sphinx_vision(unwrapped(runner.model), self.pretrained)
        runner.logger.info(
            f'LoadSphinxVisionHook: loaded the vision half of {self.pretrained}; encoders that it does not '
            f'have, which keep their weights: {kept or "none"}'
        )


def load_sphinx_vision(model: nn.Module, folder: str) -> list[int]:
    """Load the weights of neck and encoders: all of them, or none if one does not fit.

    Args:
        model (nn.Module): Has one ``MultiBackbone`` and one ``EmbeddingMixNeck`` among its modules.
        folder (str): The folder of the SPHINX.

    Returns:
        list[int]: The numbers of the encoders that the folder does not have.

    Raises:
        OSError: If the folder has no ``vision.safetensors``.
        ValueError: If the model does not have exactly one of each, or weights do not fit.
    """
    from safetensors.torch import load_file

    path = Path(folder, VISION_FILE)
    if not path.is_file():
        raise OSError(f'LoadSphinxVisionHook: pretrained={str(folder)!r} has no {VISION_FILE}')
    stored = load_file(str(path))
    stored.pop(MARKERS, None)
    backbone, neck = _find(model, MultiBackbone), _find(model, EmbeddingMixNeck)
    branches = {f'{BACKBONE}branches.{i}.': branch for i, branch in enumerate(backbone.branches)}
    kept = [i for i, prefix in enumerate(branches) if not any(name.startswith(prefix) for name in stored)]
    loaded = {prefix: module for i, (prefix, module) in enumerate(branches.items()) if i not in kept} | {NECK: neck}
    wanted = {prefix + name: value for prefix, module in loaded.items() for name, value in module.state_dict().items()}
    problems = _differences(stored, wanted)
    if problems:
        raise ValueError(
            f'LoadSphinxVisionHook: {path} does not fit the model:\n' + '\n'.join(problems) + '\nBackbone and neck '
            'must be those of its config.json.'
        )
    for prefix, module in loaded.items():
        module.load_state_dict({name: stored[prefix + name] for name in module.state_dict()})
    return kept


def _find(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    found = [module for module in model.modules() if isinstance(module, kind)]
    if len(found) != 1:
        raise ValueError(f'LoadSphinxVisionHook: the model has {len(found)} {kind.__name__}; it must have one')
    return found[0]


def _differences(stored: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """A line for each name that does not fit."""
    shapes = [
        f'{name}: {list(stored[name].shape)} in the file, {list(value.shape)} in the model'
        for name, value in wanted.items()
        if name in stored and stored[name].shape != value.shape
    ]
    lost = [f'{name}: only in the model' for name in wanted if name not in stored]
    return shapes + lost + [f'{name}: only in the file' for name in stored if name not in wanted]


@MODELS.register_module()
class TokenMean(BaseModule):
    """Turns the tokens [B, N, C] of SPHINX into their mean over an image, a tuple of one [B, C], as heads read it."""

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (tokens.mean(dim=1),)
