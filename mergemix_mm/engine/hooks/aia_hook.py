"""A hook that aligns a model's attention interaction with targets while it trains (https://arxiv.org/abs/2511.22663)."""

from collections.abc import Iterable, Sequence

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ...models.attention import InteractionAlignment
from ...models.losses import AIALoss
from ...models.tuners import BaseTuner
from ...utils.numbers import check_number
from ...utils.wrappers import unwrapped
from ...visualization import draw_interaction_curves


@HOOKS.register_module()
class AIAHook(Hook):
    """Attention interaction alignment (AIA, https://arxiv.org/abs/2511.22663) for `UnifiedTuner` and `VLMTuner`.

    Before training the hook switches on the recording of the language model's attention and gives the targets to the
    tuner. The tuner then adds ``loss_aia_gen`` or ``loss_aia_und`` (a VLMTuner: only understanding, of the clean pass)
    and logs the means ``interaction_gen`` and ``interaction_und``. After training the recording is off again, and
    outputs are the same as before, bit by bit. With ``weight=0`` the hook only records.

    Every `interval` iterations, the intensity of each layer goes to the Runner's visualizer as
    ``interaction_gen/layer_00`` and so on: the mean over all samples of all ranks since the last time. The curves with
    their targets go there as the image ``interaction_curves``. Neither is in the log lines.

    Args:
        preset (str | dict): The targets of :class:`AIALoss`: a name, a ``.json`` file, or stages. Defaults to
            ``'janus_pro'``.
        layers (Iterable[int], optional): Layers to align, from 0, e.g. ``range(10, 20)``; only these layers add cost.
            Defaults to None: all that have softmax attention.
        weight (float | dict, optional): Of :class:`AIALoss`. Defaults to None: the weights of the released code, 5
            and 10.
        schedule (Sequence[tuple[float, float]], optional): Of :class:`AIALoss`, over the progress of the training.
            Defaults to None: constant.
        interval (int): Iterations between two curves. Defaults to 100.
        backend (str): How attention gives its intensity, see
            :func:`mergemix_mm.functional.attention_with_intensity`. Defaults to ``'fused'``.

    Raises:
        ValueError: If an argument is out of range; when training starts, if a layer or a task has no target, or the
            model cannot be recorded.
        TypeError: When training starts, if the model is not a tuner of this package.

    Examples:
        >>> custom_hooks = [dict(type='AIAHook', preset='janus_pro', weight=dict(gen=5.0, und=10.0))]
    """

    def __init__(
        self,
        preset: str | dict = 'janus_pro',
        layers: Iterable[int] | None = None,
        weight: float | dict | None = None,
        schedule: Sequence[tuple[float, float]] | None = None,
        interval: int = 100,
        backend: str = 'fused',
    ) -> None:
        check_number('AIAHook: interval', interval, 'at least 1.', least=1, integer=True)
        self.criterion = AIALoss(preset, weight, schedule)
        self.layers = layers
        self.interval = interval
        self.backend = backend
        self._sums: dict[str, Tensor] = {}

    def before_train(self, runner) -> None:
        """Switch the recording on."""
        tuner = _find_tuner(runner.model)
        alignment = InteractionAlignment(tuner.vlm, self.criterion, self.layers, self.backend, tuner.tasks)
        alignment.recorder.start()
        tuner.alignment = alignment
        # A sum for each layer, and the number of samples at the end.
        self._sums = {task: torch.zeros(len(alignment.recorder.layers) + 1) for task in tuner.tasks}

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the weight."""
        self.criterion.set_progress(runner.iter / runner.max_iters)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Add up the intensities, and show them every `interval` iterations."""
        alignment = _find_tuner(runner.model).alignment
        assert alignment is not None and alignment.last is not None  # Since before_train, and the step's loss.
        last = alignment.last
        found = torch.cat([last.sums, last.count[None].to(last.sums)])
        self._sums[last.task] = self._sums[last.task].to(found.device) + found
        if self.every_n_train_iters(runner, self.interval):
            self._show(runner, alignment, last.sums.device)

    def after_train(self, runner) -> None:
        """Switch the recording off."""
        tuner = _find_tuner(runner.model)
        assert tuner.alignment is not None
        tuner.alignment.recorder.stop()
        tuner.alignment = None

    def _show(self, runner, alignment: InteractionAlignment, device: torch.device) -> None:
        layers, curves = alignment.recorder.layers, {}
        # All ranks come here, also those without a visualizer: the sums are collective.
        for task, sums in self._sums.items():
            sums = sums.to(device)  # The sum of a task without a batch so far is on the CPU.
            all_reduce(sums)
            *found, count = sums.tolist()
            if count:
                curves[task] = dict(mean=[value / count for value in found], layers=layers)
            self._sums[task] = torch.zeros_like(sums)
        if not curves or not is_main_process():
            return
        scalars = {
            f'interaction_{task}/layer_{layer:02d}': value
            for task, curve in curves.items()
            for layer, value in zip(layers, curve['mean'], strict=True)
        }
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        names = dict(gen='generation', und='understanding')
        image = draw_interaction_curves(
            {names[task]: curve for task, curve in curves.items()},
            {names[task]: alignment.curves[task] for task in curves},
            title=f'iteration {runner.iter + 1}',
        )
        runner.visualizer.add_image('interaction_curves', image, step=runner.iter + 1)


def _find_tuner(model: nn.Module) -> BaseTuner:
    tuner = unwrapped(model)
    if not isinstance(tuner, BaseTuner):
        raise TypeError(
            f"AIAHook: the model {type(tuner).__name__} cannot be aligned. Use model.type='UnifiedTuner' or "
            "'VLMTuner', or remove the hook."
        )
    return tuner
