"""The merged forward, written once over the parts that an adapter names, and the scoring pass of MergeMix."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ...families.vision_encoder import EncoderLayer, VisionEncoder
from ...functional import (
    TokenGroups,
    bipartite_soft_matching,
    class_attention,
    merge_schedule,
    merge_tokens,
    received_attention,
    restore_attention,
)
from ...utils.distributed import only_elsewhere
from ..evaluation_mode import uncached_autocast
from .build import build_vision_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

# What makes a patch salient, see :func:`score_patches`.
SALIENCIES = ('attention', 'value_norm', 'mean', 'received')


@dataclass
class PatchScores:
    """What a scoring pass finds. Shapes: B images, L' patches, L tokens with prefix.

    Args:
        saliency (Tensor): [B, L'] float32, what is salient of each original patch, >= 0.
        groups (TokenGroups): the partition of the L tokens at the scored layer.
        grid (tuple[int, int]): rows and columns of the patch grid.
        num_prefix_tokens (int): L - L'.
    """

    saliency: Tensor
    groups: TokenGroups
    grid: tuple[int, int]
    num_prefix_tokens: int

    @classmethod
    def unmerged(cls, saliency: Tensor, grid: tuple[int, int], **fields: Any) -> 'Self':
        """Scores [B, L'] of the cells of any grid, of which none was merged; `fields` are those of a subclass."""
        groups = TokenGroups.identity(saliency.size(0), saliency.size(1), saliency.device)
        return cls(saliency, groups, grid, 0, **fields)

    @property
    def num_kept_patches(self) -> int:
        """K - prefix: patches left after merging."""
        return self.groups.size.size(1) - self.num_prefix_tokens


def run_layers(
    layers: Sequence[EncoderLayer],
    x: Tensor,
    schedule: Sequence[int],
    num_prefix_tokens: int,
    prop_attn: bool = True,
    recording: 'Recording | None' = None,
) -> Iterator[tuple[Tensor, TokenGroups]]:
    """Run transformer layers that merge tokens between attention and MLP (ToMe, https://arxiv.org/abs/2210.09461).

    Args:
        layers (Sequence[EncoderLayer]): the layers to run.
        x (Tensor): [B, L, C], tokens that enter the first of them.
        schedule (Sequence[int]): how many tokens each layer merges.
        num_prefix_tokens (int): tokens at the front that never merge.
        prop_attn (bool): Whether to add log(size) of each key to the attention logits. Defaults to True.
        recording (Recording, optional): Gets the attention of its layers, and the tokens after the last layer. Defaults
            to None.

    Yields:
        tuple: tokens [B, N, C] after each layer, and their groups.
    """
    groups = TokenGroups.identity(x.size(0), x.size(1), x.device)
    for number, (layer, num_merge) in enumerate(zip(layers, schedule, strict=True), start=1):
        query, key, value = layer.query_key_value(x)
        if recording is not None and recording.reads(number):
            recording.read(number, query, key, value, groups, prop_attn)
        attended = layer.attend(query, key, value, _log_size(groups, query) if prop_attn else None)
        x = layer.add_attention(x, attended.transpose(1, 2).flatten(2))
        metric = key.detach().mean(dim=1) if num_merge else None
        del query, key, value, attended  # Memory is highest in the feed-forward, which needs none of them.
        if metric is not None:
            match = bipartite_soft_matching(metric, num_merge, num_prefix_tokens)
            x, groups = merge_tokens(x, groups, match)
        x = layer.feed_forward(x)
        if recording is not None and number == len(layers):
            recording.finish(x, groups)
        yield x, groups


def score_patches(
    encoder: VisionEncoder,
    images: Tensor,
    num_merge: int | None = None,
    layer: int | None = None,
    inflection: float = -0.5,
    prop_attn: bool = True,
    saliency: str = 'attention',
    scale: float = 1.0,
) -> PatchScores:
    """Saliency per patch at one layer, after the layers before it merged `num_merge` tokens.

    ``'attention'`` is the attention from the class token, mean over heads; without a class token, the attention
    received, averaged over all original queries. ``'value_norm'`` weights the attention of each head by the norm of the
    patch's value (https://arxiv.org/abs/2004.10102). ``'mean'`` is the mean attention of all layers up to the scored
    one, each given back to the patches through its own groups; layers with windows are left out. ``'received'`` is the
    attention that a patch gets from all patches. The pass stops at the scored layer, whose own merge comes after its
    attention.

    Args:
        encoder (VisionEncoder): the adapter of the scoring model.
        images (Tensor): [B, 3, H, W] normalised images.
        num_merge (int, optional): Patches merged before the scored layer. Defaults to None: half of the patches, or 0
            with a warning if the encoder's tokens cannot merge (rotary positions).
        layer (int, optional): The scored layer, counted from 1. Defaults to None: at 3/4 of the depth, rounded up; if
            the tokens of that layer attend within windows, the last layer of global attention before it.
        inflection (float): Shape of the merge schedule, see :func:`merge_schedule`. Defaults to -0.5.
        prop_attn (bool): Proportional attention. Defaults to True.
        saliency (str): ``'attention'``, ``'value_norm'``, ``'mean'`` or ``'received'``. Defaults to
            ``'attention'``, the paper's.
        scale (float): Side of the images that are scored, as a share of the side of `images` in (0, 1], rounded to
            whole patches. Below 1, the pixels are averaged, `num_merge` counts the patches of the small images, and
            the saliency is interpolated. Defaults to 1.0.

    Returns:
        PatchScores: saliency per patch of `images`, and the groups of the scored layer; single patches where `scale`
            is below 1.

    Raises:
        ValueError: if `layer` is not in the encoder or has windows, `num_merge` is out of reach, `saliency` is
            unknown, or the encoder takes images of one size only and `scale` is below 1.
    """
    _check_image_size(encoder, images)
    if scale < 1:
        grid, block = encoder.patch_grid(images), encoder.patch_block
        small = [block * max(round(scale * cells / block), 1) for cells in grid]
        size = [cells * side for cells, side in zip(small, encoder.patch_size, strict=True)]
        shrunk = F.interpolate(images, size, mode='area')
        found = score_patches(encoder, shrunk, num_merge, layer, inflection, prop_attn, saliency)
        enlarged = F.interpolate(found.saliency.unflatten(1, (1, *found.grid)), grid, mode='bilinear')
        return PatchScores.unmerged(enlarged.flatten(1), grid)
    num_merge = scored_merge(encoder, num_merge)
    # Weights may have another dtype than images, which not every library's embeddings cast.
    x, grid = encoder.embed(images.to(next(encoder.model.parameters()).dtype))
    prefix, recording = encoder.num_prefix_tokens, Recording(encoder, layer, grid, saliency)
    last = recording.layer - 1
    schedule = _scoring_schedule(num_merge, recording.layer, inflection, x.size(1), prefix)

    groups = TokenGroups.identity(x.size(0), x.size(1), x.device)
    for x, groups in run_layers(encoder.layers[:last], x, schedule, prefix, prop_attn, recording):  # noqa: B007, B020
        pass  # Only the last state counts.
    return recording.read(recording.layer, *encoder.layers[last].query_key_value(x), groups, prop_attn)


class Recording:
    """What one forward pass of an encoder shows while it runs, without another pass; made by :func:`recorded`.

    Args:
        encoder (VisionEncoder): The adapter of the model that runs.
        layer (int, optional): The layer whose attention is read, counted from 1; -1 is the last. Defaults to None: as
            for :func:`score_patches`.
        grid (tuple[int, int]): Rows and columns of the patches of the images.
        saliency (str): As for :func:`score_patches`. Defaults to ``'attention'``.
    """

    def __init__(
        self, encoder: VisionEncoder, layer: int | None, grid: tuple[int, int], saliency: str = 'attention'
    ) -> None:
        if saliency not in SALIENCIES:
            raise ValueError(f'saliency={saliency!r} must be one of {SALIENCIES}')
        self.encoder = encoder
        self.layer = _scored_layer(encoder, layer)
        self.grid = grid
        self.saliency = saliency
        self.scores: PatchScores | None = None
        # [B, L, C] after the last layer and its norm. With gradient.
        self.tokens: Tensor | None = None
        # [B, L'] of each layer that was read.
        self._rows: dict[int, Tensor] = {}

    def reads(self, number: int) -> bool:
        """Whether the attention of a layer, counted from 1, is asked for."""
        earlier = self.saliency == 'mean' and number < self.layer
        return number == self.layer or (earlier and self.encoder.layers[number - 1].is_global)

    @torch.no_grad()
    def read(
        self, number: int, query: Tensor, key: Tensor, value: Tensor, groups: TokenGroups, prop_attn: bool
    ) -> PatchScores:
        """Read the saliency from query, key and value [B, H, N, D] of a layer; dropout of the attention plays no part.

        Args:
            number (int): The layer, counted from 1. The scored one comes last.
            query (Tensor): [B, H, N, D].
            key (Tensor): [B, H, N, D].
            value (Tensor): [B, H, N, D].
            groups (TokenGroups): Those of the layers before.
            prop_attn (bool): Proportional attention.

        Returns:
            PatchScores: of what was read so far.
        """
        prefix, size = self.encoder.num_prefix_tokens, groups.size if prop_attn else None
        weights = value if self.saliency == 'value_norm' else None
        if self.encoder.has_class_token and self.saliency != 'received':
            attention = class_attention(query[:, :, 0], key, size, weights)
        else:
            # All original queries vote: a merged query counts as often as it has patches.
            votes = groups.size
            if self.saliency == 'received':
                votes = votes.clone()
                votes[:, :prefix] = 0  # Patches only.
            attention = received_attention(query, key, votes, size, value=weights)
        self._rows[number] = restore_attention(attention, groups, prop_attn)[:, prefix:]
        rows = list(self._rows.values())
        saliency = rows[0] if len(rows) == 1 else torch.stack(rows).mean(dim=0)
        self.scores = PatchScores(saliency, groups, self.grid, prefix)
        return self.scores

    def finish(self, x: Tensor, groups: TokenGroups) -> None:
        """Keep the tokens after the last layer, normalised; each original token gets the value of its group.

        To be called within the forward of the model: after it, FSDP may have sharded the weights of the norm again.

        Args:
            x (Tensor): [B, N, C], tokens after the last layer.
            groups (TokenGroups): Their groups.
        """
        tokens = self.encoder.finish(x)
        merged = tokens.size(1) < groups.index.size(1)
        self.tokens = groups.restore(tokens) if merged else tokens

    def finished(self) -> tuple[PatchScores, Tensor]:
        """The scores, and the tokens [B, L, C] after the norm; each original token has the value of its group.

        Raises:
            RuntimeError: If no forward pass ran, or it did not run the model's layers.
        """
        if self.scores is None or self.tokens is None:
            name = type(self.encoder.model).__name__
            raise RuntimeError(f'`{name}` did not run its layers as modules, so its attention was not recorded')
        return self.scores, self.tokens


@contextmanager
def recorded(
    model: nn.Module, images: Tensor, layer: int | None = None, saliency: str = 'attention'
) -> Iterator[Recording]:
    """Read the attention of one layer in the forward pass that runs inside this context.

    A model with an attribute ``recording`` (`ToMeVisionTransformer`) fills it in its own forward. In other models the
    layer is observed by hooks, which repeat its projection of queries and keys: 1/4 of the weights of one layer, and of
    each layer that ``saliency='mean'`` reads.

    Args:
        model (nn.Module): The encoder.
        images (Tensor): [B, 3, H, W], the images that it will get.
        layer (int, optional): Counted from 1; -1 is the last. Defaults to None: as for :func:`score_patches`.
        saliency (str): As for :func:`score_patches`. Defaults to ``'attention'``.

    Yields:
        Recording: filled when the forward has run.

    Raises:
        UnsupportedEncoderError: If the model is not a supported vision transformer.
        ValueError: If the layer is not in the encoder, or the saliency is unknown.
    """
    encoder = build_vision_encoder(model)
    _check_image_size(encoder, images)
    recording = Recording(encoder, layer, encoder.patch_grid(images), saliency)
    if hasattr(model, 'recording'):
        own: Any = model
        own.recording = recording
        try:
            yield recording
        finally:
            own.recording = None
        return

    if encoder.no_merge is not None:  # Rotary positions: the adapter's layers get those of the images here.
        with torch.no_grad(), uncached_autocast(images.device.type):
            encoder.embed(images)

    def before(number: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        with torch.no_grad(), uncached_autocast(x.device.type):
            parts = encoder.layers[number - 1].query_key_value(x)
            recording.read(number, *parts, TokenGroups.identity(x.size(0), x.size(1), x.device), True)

    def after(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        x = output[0] if isinstance(output, tuple) else output
        recording.finish(x, TokenGroups.identity(x.size(0), x.size(1), x.device))

    handles = [encoder.layers[-1].module.register_forward_hook(after)]
    for number in filter(recording.reads, range(1, recording.layer + 1)):
        module = encoder.layers[number - 1].module
        handles.append(module.register_forward_pre_hook(partial(before, number), with_kwargs=True))
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """Gather an encoder's parameters, if it is an FSDP unit of its own. A collective: every rank must enter it.

    The scoring pass calls the parts of an encoder and not its forward, so FSDP would not notice that its layers are
    used. Nothing is done for an encoder that is part of a larger unit: its parameters are whole while that unit runs.

    Args:
        model (nn.Module): The encoder, sharded or not.

    Yields:
        nn.Module: the encoder itself.

    Raises:
        RuntimeError: if FSDP shards modules inside the encoder.
    """
    units = sharded_units(model)
    inside = [name for name, module in model.named_modules() if module in units and module is not model]
    if inside:
        raise RuntimeError(
            f'FSDP shards {len(inside)} modules inside the scoring encoder `{type(model).__name__}` (first: '
            f'{inside[0]!r}). Keep its layers out of strategy.units, so that the encoder is one unit or part of the '
            'root, or score with MergeMix(encoder=dict(...))'
        )
    for unit in units:
        unit.unshard()
    try:
        yield model
    finally:
        for unit in units:
            unit.reshard()


def sharded_units(model: nn.Module) -> list[Any]:
    """The modules of a model that ``fully_shard`` has made units, the model itself included."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def join_units(units: Sequence[Any], runs_here: bool) -> None:
    """Take part in gathering units that only other ranks run, such as encoders in a batch of text. A collective.

    Args:
        units (Sequence[FSDPModule]): Units without parameters that train, in the order in which they run; the same on
            all ranks.
        runs_here (bool): Whether this rank runs them after this call.
    """
    if units and only_elsewhere(runs_here):
        for unit in units:
            unit.unshard()
            unit.reshard()


def _check_image_size(encoder: VisionEncoder, images: Tensor) -> None:
    """Refuse images that are not a multiple of the patches: libraries would pad or cut the rest."""
    (height, width), (rows, cols) = images.shape[-2:], encoder.patch_size
    if height % rows or width % cols:
        raise ValueError(
            f'images of {height} x {width} pixels are not a multiple of the {rows} x {cols} patches of '
            f'`{type(encoder.model).__name__}`: resize or crop them in the pipeline, or set '
            f'data_preprocessor.pad_size_divisor={max(rows, cols)}'
        )


def scored_merge(encoder: VisionEncoder, num_merge: int | None) -> int | None:
    """`num_merge` for an encoder: 0 if its tokens cannot merge and `num_merge` is None, otherwise unchanged.

    Raises:
        ValueError: if tokens should merge that cannot.
    """
    if encoder.no_merge is None:
        return num_merge
    name = type(encoder.model).__name__
    if num_merge:
        raise ValueError(
            f'num_merge={num_merge}: tokens of `{name}` cannot merge ({encoder.no_merge}); set num_merge=0, which '
            'scores without merging'
        )
    if num_merge is None:
        warnings.warn(
            f'tokens of `{name}` cannot merge ({encoder.no_merge}), so MergeMix scores without merging; num_merge=0 '
            'says the same without this warning',
            stacklevel=3,
        )
    return 0


def _scored_layer(encoder: VisionEncoder, layer: int | None) -> int:
    name, depth = type(encoder.model).__name__, len(encoder.layers)
    whole = [number for number, one in enumerate(encoder.layers, start=1) if one.is_global]
    if layer is None and whole:
        return max((number for number in whole if number <= -(-3 * depth // 4)), default=whole[0])
    layer = depth if layer == -1 else layer
    if layer is not None and not 1 <= layer <= depth:
        raise ValueError(f'layer={layer} must be in [1, {depth}], the layers of `{name}`')
    if layer not in whole:
        raise ValueError(f'layer={layer}: its tokens attend within windows; layers of `{name}` that can score: {whole}')
    return layer


def _scoring_schedule(num_merge: int | None, layer: int, inflection: float, num_tokens: int, prefix: int) -> list[int]:
    num_patches = num_tokens - prefix
    if num_merge is None:
        num_merge = num_patches // 2 if layer > 1 else 0
    if not 0 <= num_merge < num_patches:
        raise ValueError(
            f'num_merge={num_merge} must be in [0, {num_patches - 1}]: the encoder sees {num_patches} patches per '
            'image. Merge fewer (None merges half of them) or train on larger images'
        )
    if num_merge and layer == 1:
        raise ValueError(f'num_merge={num_merge} with layer=1: no layer before the first could merge; set layer >= 2')
    try:
        return merge_schedule(layer - 1, num_merge, inflection, num_tokens=num_tokens, protected=prefix)
    except ValueError as error:
        raise ValueError(f'num_merge={num_merge}, layer={layer}, inflection={inflection}: {error}') from None


def _log_size(groups: TokenGroups, query: Tensor) -> Tensor | None:
    if groups.size.size(1) == groups.index.size(1):
        return None  # Nothing merged yet: log(1) = 0, and attention without a mask is faster.
    return groups.size.log().to(query.dtype)[:, None, None, :]
