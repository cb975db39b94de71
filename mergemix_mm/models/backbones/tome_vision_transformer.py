"""MMPretrain's VisionTransformer with token merging in its own layers (ToMe, https://arxiv.org/abs/2210.09461)."""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn

from ...functional import merge_schedule
from ...functional.token_merge import static_int
from ...utils.numbers import check_number, is_number
from ..vision_encoders import Recording, build_vision_encoder, run_layers


@MODELS.register_module()
class ToMeVisionTransformer(VisionTransformer):
    """A VisionTransformer that merges similar tokens layer by layer, which saves computation.

    Merging adds no parameters: every checkpoint of the plain model loads. All outputs have the plain model's shapes:
    for ``'featmap'``, ``'raw'`` and ``'avg_featmap'`` each original token gets the value of its group. As the backbone
    of a detector it takes ``out_type='featmap'`` and a share of the patches as `num_merge`, because images differ in
    size there.

    The forward calls the parts of the layers, not the layers: hooks and activation checkpointing on whole layers have
    no effect, and FSDP has to keep the layers in one unit. `torch.jit.trace` and `torch.export` work; the result is
    valid for any batch of images of the traced size.

    Args:
        num_merge (int | float): Tokens merged over all layers, >= 0; a float in [0, 1) is the share of the input
            images' patches, rounded down. Defaults to 0: the plain model.
        inflection (float): Shape of the schedule over the layers in [-1, 1], see
            :func:`mergemix_mm.functional.merge_schedule`. Defaults to 0.0.
        merge_in (Sequence[str]): When to merge: ``'train'``, ``'test'`` or both. Defaults to ``('train', 'test')``.
        prop_attn (bool): Proportional attention: merged tokens count with their size. Defaults to True.
        num_registers (int): Learnt tokens without position between the class token and the patches, >= 0. They never
            merge, and no output shows them (https://arxiv.org/abs/2309.16588: large models store global information in
            patches of the background, whose attention then says nothing about the image; registers take it over).
            Their parameter is ``register_tokens``. Defaults to 0.
        **kwargs: As for MMPretrain's `VisionTransformer`.

    Raises:
        ValueError: If an argument is out of its range; in the forward, if the images have too few patches for
            `num_merge`.
    """

    def __init__(
        self,
        *args,
        num_merge: int | float = 0,
        inflection: float = 0.0,
        merge_in: Sequence[str] = ('train', 'test'),
        prop_attn: bool = True,
        num_registers: int = 0,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(merge_in, str) or not set(merge_in) <= {'train', 'test'}:
            raise ValueError(f"ToMeVisionTransformer: merge_in={merge_in!r} must be a tuple of 'train' and 'test'")
        if not is_number(num_merge, least=0, integer=True):
            allowed = 'an int >= 0, or a float in [0, 1), a share of the patches'
            check_number('ToMeVisionTransformer: num_merge', num_merge, allowed, least=0, below=1)
        check_number('ToMeVisionTransformer: inflection', inflection, 'in [-1, 1]', least=-1, most=1)
        self.num_merge = num_merge
        self.inflection = inflection
        self.merge_in = tuple(merge_in)
        self.prop_attn = prop_attn
        allowed = 'an int >= 0'
        check_number('ToMeVisionTransformer: num_registers', num_registers, allowed, least=0, integer=True)
        self.num_registers = num_registers
        if num_registers:
            # Drawn here as well, so that registers differ without `init_weights()`: equal ones would stay equal.
            tokens = nn.init.trunc_normal_(torch.empty(1, num_registers, self.embed_dims), std=0.02)
            self.register_tokens = nn.Parameter(tokens, requires_grad=self.frozen_stages <= 0)
        # What `recorded` has the next forward fill in.
        self.recording: Recording | None = None

    @property
    def merges_in_training(self) -> bool:
        """Whether tokens merge in training mode."""
        return 'train' in self.merge_in and bool(self.num_merge)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> one output per index of ``out_indices``, shaped by ``out_type``."""
        encoder = build_vision_encoder(self)
        x, grid = encoder.embed(x)
        # A plain int also while tracing: the schedule depends on it.
        prefix, num_tokens = encoder.num_prefix_tokens, static_int(x.size(1))
        num_merge = self._num_merge(num_tokens - prefix)
        try:
            schedule = merge_schedule(
                self.num_layers, num_merge, self.inflection, num_tokens=num_tokens, protected=prefix
            )
        except ValueError as error:
            raise ValueError(f'ToMeVisionTransformer: num_merge={num_merge}: {error}') from None

        outs = []
        layers = run_layers(encoder.layers, x, schedule, prefix, self.prop_attn, self.recording)
        for i, (tokens, groups) in enumerate(layers):
            if i in self.out_indices:
                out = encoder.finish(tokens) if i == self.num_layers - 1 else tokens
                if self.out_type != 'cls_token':
                    out = self._without_registers(groups.restore(out))
                outs.append(self._format_output(out, grid))
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The depth of a parameter for layer-wise learning rates; registers are at depth 0, as the class token is."""
        if param_name == f'{prefix}register_tokens':
            param_name = f'{prefix}cls_token'
        return super().get_layer_depth(param_name, prefix)

    def _without_registers(self, x: Tensor) -> Tensor:
        if not self.num_registers:
            return x
        first = self.num_extra_tokens
        return torch.cat([x[:, :first], x[:, first + self.num_registers :]], dim=1)

    def _num_merge(self, num_patches: int) -> int:
        """How many tokens are merged in images of `num_patches` patches, in the current mode."""
        if ('train' if self.training else 'test') not in self.merge_in:
            return 0
        return int(self.num_merge * num_patches) if isinstance(self.num_merge, float) else self.num_merge
