"""One encoder of a `MultiBackbone`: its own view of the images, and its output as a map or a sequence."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...functional import resize
from ...utils.numbers import check_number, is_number
from ..vlms.weight_names import adopt_names, old_options
from .encoder_outputs import check_size, find_run, is_qformer
from .token_map import TokenLayout, TokenMap, find_cell


class EncoderBranch(nn.Module):
    """Resizes and re-normalises images for one encoder, runs it, and reads its output.

    The images are cast to the encoder's dtype, and its output is cast back to that of the images. Under FSDP a branch
    has to be one unit: scoring calls parts of the encoder without its forward, so FSDP would not gather inner units.

    Args:
        encoder (nn.Module | dict): The encoder, or its config, see :class:`MultiBackbone`.
        input_size (int, optional): Side of the square that images are resized to, in pixels. Defaults to None: images
            stay as they are.
        mean (Sequence[float], optional): Of the three channels, as the encoder was trained. Defaults to None: the
            normalisation of the images is kept.
        std (Sequence[float], optional): Of the three channels, likewise. Defaults to None.
        frozen (bool): Whether the encoder takes no gradient and stays in eval mode. Defaults to True.
        common_mean (Sequence[float], optional): Mean that the incoming images are normalised with. Defaults to None.
        common_std (Sequence[float], optional): Their standard deviation. Defaults to None.
        name (str): Place of the encoder in the config, for messages. Defaults to ``'encoder'``.

    Raises:
        ValueError: If an argument cannot be used.
    """

    def __init__(
        self,
        encoder: nn.Module | dict,
        input_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen: bool = True,
        common_mean: Sequence[float] | None = None,
        common_std: Sequence[float] | None = None,
        name: str = 'encoder',
    ) -> None:
        super().__init__()
        if input_size is not None:
            allowed = 'an integer >= 1, the side of a square'
            check_number(f'{name}: input_size', input_size, allowed, least=1, integer=True)
        self.name = name
        self.input_size = input_size
        self.frozen = frozen
        self.encoder = build_encoder(encoder) if isinstance(encoder, dict) else encoder
        # A given module has its weights already, and timm, transformers and TIMMBackbone load theirs while building.
        self.draws_weights = (
            isinstance(encoder, dict) and isinstance(self.encoder, BaseModule) and not self.encoder.is_init
        )
        self._run = find_run(self.encoder)
        self._layout = TokenLayout.of(self.encoder)
        self._is_sequence = is_qformer(self.encoder)
        if input_size is not None:
            try:
                check_size(self.encoder, (input_size, input_size))
            except ValueError as error:
                raise ValueError(f'{name}: input_size={input_size}: {error}') from None
        # Set by MultiBackbone: what the sides of images have to be multiples of for all encoders; for messages.
        self.divisor: int | None = None
        scale, shift = _renormalisation(mean, std, common_mean, common_std, name)
        self.register_buffer('scale', scale, persistent=False)
        self.register_buffer('shift', shift, persistent=False)
        if frozen:
            self.encoder.requires_grad_(False)
        self.train()

    @property
    def scoring_encoder(self) -> nn.Module:
        """The encoder inside, for `build_vision_encoder`; the branch itself may be an FSDP unit."""
        return self.encoder

    @property
    def renormalises(self) -> bool:
        """Whether the encoder's normalisation differs from the common one."""
        return self.scale is not None

    @property
    def patch_divisor(self) -> int:
        """What the sides of incoming images have to be multiples of, as far as is known."""
        return 1 if self._layout is None or self.input_size is not None else self._layout.divisor

    def init_weights(self) -> None:
        """Initialise an encoder of OpenMMLab that was built here; all others have their weights already."""
        if self.draws_weights:
            self.encoder.init_weights()

    def apply(self, fn: Callable[[nn.Module], None]) -> 'EncoderBranch':
        """As in torch, but an encoder that has its weights already is left unchanged.

        MMEngine redraws all weights of a model with an `init_cfg` through this method.
        """
        return super().apply(fn) if self.draws_weights else self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        adopt_names(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> 'EncoderBranch':
        """As in torch, but a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> TokenMap | Tensor:
        """Images [B, 3, H, W] in the common normalisation -> map of tokens, or a Q-Former's queries [B, n, C].

        Raises:
            ValueError: If the images do not fit the encoder, or its output is neither of these.
        """
        inputs = self._prepare(images)
        try:
            check_size(self.encoder, inputs.shape[-2:])
            if self._layout is not None:
                self._layout.patch_grid(inputs.shape[-2:], self.divisor)
            # A frozen encoder keeps no graph, even if the images require gradients.
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                output = self._run(self.encoder, inputs).to(images.dtype)
            return self._as_map(images, inputs, output)
        except ValueError as error:
            raise ValueError(f'MultiBackbone: {self.name} (`{type(self.encoder).__name__}`): {error}') from error

    def _prepare(self, images: Tensor) -> Tensor:
        if self.input_size is not None:
            images = resize(images, (self.input_size, self.input_size))
        if self.renormalises:
            images = images * self.scale + self.shift
        # Cast last, so that resizing and normalising run in the precision of the images.
        return images.to(next((p.dtype for p in self.encoder.parameters() if p.is_floating_point()), images.dtype))

    @torch.compiler.disable  # A graph of torch 2.8 loses the cell, an attribute of a tuple.
    def _as_map(self, images: Tensor, inputs: Tensor, output: Tensor) -> TokenMap | Tensor:
        return self._in_pixels_of(images, inputs, self._to_map(output, inputs.shape[-2:]))

    @staticmethod
    def _in_pixels_of(images: Tensor, inputs: Tensor, output: TokenMap | Tensor) -> TokenMap | Tensor:
        """The cells of a map in pixels of the images, from which the inputs may have been resized."""
        if not isinstance(output, TokenMap):
            return output
        assert output.cell is not None  # `_read` knows it.
        sizes = zip(output.cell, images.shape[-2:], inputs.shape[-2:], strict=True)
        height, width = (cell * whole / resized for cell, whole, resized in sizes)
        return output.with_cell((height, width))

    def _to_map(self, output: Tensor, image_size: Sequence[int]) -> TokenMap | Tensor:
        if self._is_sequence:
            return output
        if output.ndim == 4:
            return TokenMap(output).with_cell(find_cell(image_size, output.shape[-2:]))
        if output.ndim == 3:
            layout = self._layout or TokenLayout.from_config(self.encoder)
            if layout is None:
                raise ValueError(
                    f'gives tokens {list(output.shape)} whose grid is not known. Have it give a map [B, C, h, w]: '
                    "out_type='featmap' in MMPretrain, features_only=True, out_indices=(-1,) in timm"
                )
            return layout.read(output, image_size, self.divisor)
        raise ValueError(
            f'gives {list(output.shape)}, pooled over the image. Have it give its tokens: in MMPretrain '
            "out_type='raw' (with class token) or 'featmap' for vision transformers, gap_before_final_norm=False for "
            'ConvNeXt'
        )


def build_encoder(cfg: dict) -> nn.Module:
    """Build an encoder through MMPretrain's registry; see :class:`MultiBackbone`."""
    cfg = deepcopy(dict(cfg))
    config = cfg.get('config')
    if isinstance(config, dict) and 'model_type' in config:
        from transformers import AutoConfig

        # MMEngine's ConfigDict is nested, and transformers wants plain dicts.
        config = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
        cfg['config'] = AutoConfig.for_model(**config)
    return MODELS.build(cfg | old_options(cfg.get('type')))


def _renormalisation(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    common_mean: Sequence[float] | None,
    common_std: Sequence[float] | None,
    name: str,
) -> tuple[Tensor | None, Tensor | None]:
    """Factor and summand [3, 1, 1] from the common normalisation to the encoder's; None where it is the common one."""
    if mean is None and std is None:
        return None, None
    values = dict(mean=mean, std=std, common_mean=common_mean, common_std=common_std)
    if common_mean is None or common_std is None:
        raise ValueError(
            f'{name}: mean and std of an encoder need mean and std of MultiBackbone, what its images are normalised '
            'with: those of the data preprocessor, on the same scale (0 to 1, or 0 to 255)'
        )
    for key, value in values.items():
        above = 0.0 if 'std' in key else -math.inf
        if not isinstance(value, Sequence) or len(value) != 3 or not all(is_number(v, above=above) for v in value):
            raise ValueError(f'{name}: {key}={value} must be three numbers, one per channel, above 0 for std')
    own, deviation, common, common_deviation = (
        torch.tensor(value, dtype=torch.float32).view(3, 1, 1) for value in values.values()
    )
    if torch.equal(own, common) and torch.equal(deviation, common_deviation):
        return None, None
    return common_deviation / deviation, (common - own) / deviation
