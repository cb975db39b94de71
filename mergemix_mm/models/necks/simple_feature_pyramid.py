"""A feature pyramid from the last map of a plain vision transformer (ViTDet, https://arxiv.org/abs/2203.16527)."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from ...utils.numbers import check_number, is_number

NUM_LEVELS = 4


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Four levels from one map, without a top-down path (section 3 of the paper).

    The map of stride s becomes maps of stride s/4 (two deconvolutions), s/2 (one), s and 2s (max pooling); with patches
    of 16 pixels: 4, 8, 16 and 32. Each map then passes a 1x1 convolution, a norm, a 3x3 convolution and a norm. Further
    levels halve the last one, as in FPN. Sizes are rounded up, so that every level covers the image, even a map of one
    row.

    Args:
        in_channels (int): Channels of the backbone's map, a multiple of 4.
        out_channels (int): Channels of every level. Defaults to 256.
        num_outs (int): Number of levels, >= 4. Defaults to 5.
        norm_cfg (dict): Config of the norms, from MMPretrain's registry. Defaults to ``dict(type='LN2d', eps=1e-6)``,
            which normalises over the channels of each position.
        init_cfg (dict, optional): Initialization config. Defaults to None: torch's own.

    Raises:
        ValueError: If an argument is out of its range; in the forward, if the last input is not a map of
            ``in_channels`` channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        norm_cfg: dict = dict(type='LN2d', eps=1e-6),  # noqa: B006  read, not written
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not is_number(in_channels, least=4, integer=True) or in_channels % 4:
            raise ValueError(
                f'SimpleFeaturePyramid: in_channels={in_channels!r} must be a multiple of 4, the channels of the one '
                'map that it takes: embed_dims of the backbone'
            )
        allowed = 'an integer of at least 1'
        check_number('SimpleFeaturePyramid: out_channels', out_channels, allowed, least=1, integer=True)
        allowed = f'at least {NUM_LEVELS}'
        check_number('SimpleFeaturePyramid: num_outs', num_outs, allowed, least=NUM_LEVELS, integer=True)
        self.in_channels, self.num_outs = in_channels, num_outs
        half, quarter = in_channels // 2, in_channels // 4
        resize = [
            nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2),
                build_norm_layer(norm_cfg, half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
            ),
            nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2),
            nn.Identity(),
            nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True),  # Keeps the last row of an odd map.
        ]
        widths = (quarter, half, in_channels, in_channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                step,
                nn.Conv2d(width, out_channels, kernel_size=1, bias=False),
                build_norm_layer(norm_cfg, out_channels),
                nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                build_norm_layer(norm_cfg, out_channels),
            )
            for step, width in zip(resize, widths, strict=True)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the levels from the last map of the backbone.

        Args:
            inputs (Sequence[Tensor]): Maps, of which only the last is used, [B, in_channels, h, w].

        Returns:
            tuple[Tensor, ...]: one map per level, finest first: [B, out_channels, 4h, 4w], [.., 2h, 2w], [.., h, w],
            [.., ceil(h / 2), ceil(w / 2)], ...
        """
        x = inputs[-1]
        if x.dim() != 4 or x.size(1) != self.in_channels:
            raise ValueError(
                f'SimpleFeaturePyramid: the last input has the shape {list(x.shape)}, not [B, in_channels='
                f"{self.in_channels}, h, w]. Set out_type='featmap' in model.backbone, and neck.in_channels to its "
                'width'
            )
        outs = [level(x) for level in self.levels]
        for _ in range(self.num_outs - NUM_LEVELS):
            # Subsampling, as FPN makes its extra levels: the kernel is 1.
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return tuple(outs)
