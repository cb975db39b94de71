"""A hook that draws during training what the mixing augmentation does to the images."""

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...utils.numbers import check_number
from ...utils.wrappers import unwrapped
from ...visualization import draw_mixed_samples, labels_of, pixel_scale


@HOOKS.register_module()
class MixVisualizationHook(Hook):
    """Draw the mixed samples of a training step every `interval` iterations.

    Each row of the page is one image: clean, partner, saliency, mask and mixed, with labels and ratio. The page is
    drawn from the ``mix_result`` that the model kept, without another pass of the encoder. It goes to the Runner's
    visualizer under the name ``mixed_samples``: a file with ``LocalVisBackend``, the images tab with
    ``TensorboardVisBackend``. If the batch of that iteration was not mixed, the next mixed one is drawn. Only the main
    process draws.

    The hook works with a ``MixupClassifier`` and with a ``VLMTuner`` that has a mixer. The normalisation of a
    VLMTuner's images is undone with the numbers of its ``processor``; without a processor their values are stretched to
    0..255.

    Args:
        interval (int): Iterations between two pages, >= 1. Defaults to 200.
        num_images (int): The most rows of a page, >= 1. Defaults to 8.
        channel_order (str): ``'rgb'`` or ``'bgr'``, the order of the channels that enter the model; ``'bgr'`` where
            the data preprocessor has ``to_rgb=False`` and images are read from files. Defaults to ``'rgb'``.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: When training starts, if the model keeps no ``mix_result`` or, a VLMTuner, has no mixer.

    Examples:
        >>> custom_hooks = [dict(type='MixVisualizationHook', interval=100)]
    """

    def __init__(self, interval: int = 200, num_images: int = 8, channel_order: str = 'rgb') -> None:
        for key, value in dict(interval=interval, num_images=num_images).items():
            check_number(f'MixVisualizationHook: {key}', value, 'at least 1.', least=1, integer=True)
        if channel_order not in ('rgb', 'bgr'):
            raise ValueError(f"MixVisualizationHook: channel_order={channel_order!r} must be 'rgb' or 'bgr'.")
        self.interval = interval
        self.num_images = num_images
        self.channel_order = channel_order
        self._due = False

    def before_train(self, runner) -> None:
        """Refuse a model that mixes nothing."""
        model = unwrapped(runner.model)
        if not hasattr(model, 'mix_result'):
            raise TypeError(
                f'MixVisualizationHook: the model {type(model).__name__} keeps no mix_result to draw. Use '
                "model.type='MixupClassifier', which takes the same train_cfg as ImageClassifier, or 'VLMTuner' with a "
                'mixer, or remove the hook.'
            )
        if getattr(model, 'mixer', True) is None:
            raise TypeError(
                f'MixVisualizationHook: the model {type(model).__name__} has no mixer, so there is nothing to draw. '
                "Set model.mixer, e.g. dict(type='MergeMix'), or remove the hook."
            )

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Draw the page when it is due and the batch was mixed."""
        self._due = self._due or self.every_n_train_iters(runner, self.interval)
        if not self._due or not is_main_process():
            return
        model = unwrapped(runner.model)
        result = model.mix_result
        if result is None or (hasattr(result, 'mixed') and not result.mixed.any()):
            return
        mean, std = _normalisation(model, result)
        metainfo = getattr(runner.train_loop.dataloader.dataset, 'metainfo', {})
        image = draw_mixed_samples(
            result,
            mean=mean,
            std=std,
            labels=labels_of(data_batch, len(result.images)),
            classes=metainfo.get('classes'),
            max_rows=self.num_images,
            channel_order=self.channel_order,
        )
        runner.visualizer.add_image('mixed_samples', image, step=runner.iter + 1)
        self._due = False


def _normalisation(model, result) -> tuple:
    """Mean and standard deviation of the images: those of the data preprocessor, or of a VLM's processor."""
    if hasattr(model, 'vlm'):
        return pixel_scale(model.processor, result.clean)
    preprocessor = getattr(model, 'data_preprocessor', None)
    return getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
