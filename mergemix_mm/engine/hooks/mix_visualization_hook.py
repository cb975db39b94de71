"""A hook that shows during training what the mixing augmentation does to the images."""

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...utils.numbers import check_number
from ...utils.wrappers import unwrapped
from ...visualization import draw_mixed_samples, labels_of, pixel_scale


@HOOKS.register_module()
class MixVisualizationHook(Hook):
    """Draw the mixed samples of a training step every so many iterations.

    Each row of the page is one image: clean, partner, saliency, mask and mixed, with labels and ratio. The page comes
    from the ``mix_result`` that the model kept, never from another pass of the encoder, and goes to the Runner's
    visualizer under the name ``mixed_samples``: a file with ``LocalVisBackend``, the images tab with
    ``TensorboardVisBackend``. When the batch of that iteration stayed unmixed, the next mixed one is drawn. Only the
    main process draws.

    It serves classification (``MixupClassifier``) and preference tuning (``VLMTuner`` with a mixer); the images of a
    VLMTuner are brought back to colours by its ``processor``, or stretched to all of the scale where it has none.

    Args:
        interval (int): Iterations between two pages. Defaults to 200.
        num_images (int): Rows of a page at most. Defaults to 8.
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
        """Refuse a model that has nothing to show."""
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
