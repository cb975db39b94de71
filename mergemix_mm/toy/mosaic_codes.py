"""A VQ model of Janus that needs no training: an image becomes a mosaic of tiles of one colour each."""

import torch
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

# Group norms would rescale the colours. Large constants beside a colour make the deviation of its group nearly
# independent of the image; the error is below 0.1%.
LARGE = 30.0
# After adding this bias, SiLU is the identity.
LINEAR = 20.0
EMBED_DIM = 5


@WEIGHT_INITIALIZERS.register_module()
class MosaicCodes:
    """Sets the weights of a Janus' VQ model so that its codes are colours, on an even grid of RGB.

    For experiments on drawn images, where codes have to mean something and a trained VQ model is not at hand. The code
    of a tile is the colour nearest to the mean of its 4 middle pixels; decoded, the tile has this colour all over. All
    of that is computed by the modules of transformers: the weights can be saved and loaded like others.

    The model's ``vq_config`` must have ``embed_dim=5``, a cube as ``num_embeddings`` (216: 6 levels of each channel),
    ``base_channels`` of at least 128 and a multiple of it, ``channel_multiplier=[1, 1, ...]``, as many as make tiles of
    ``2 ** (n - 1)`` >= 2 pixels, and ``num_res_blocks=0``.

    In a config, ``vlm=dict(type='JanusModel', config=..., init_cfg=dict(type='MosaicCodes'))``.

    Raises:
        ValueError: When called, if the ``vq_config`` does not fit.
    """

    def __call__(self, module: nn.Module) -> None:
        """Set the weights of the VQ model in a `JanusModel`."""
        vq = module.family.model.model.vqmodel
        levels = self._check(vq.config)
        with torch.no_grad():
            for name, parameter in vq.named_parameters():
                parameter.fill_(1.0 if name.endswith(('norm.weight', 'norm1.weight', 'norm2.weight')) else 0.0)
            self._set_encoder(vq.encoder)
            self._set_decoder(vq.decoder)
            for conv in (vq.quant_conv, vq.post_quant_conv):
                conv.weight[:EMBED_DIM, :EMBED_DIM, 0, 0].copy_(torch.eye(EMBED_DIM))
            codebook = _codebook(levels)
            length = codebook[0].norm()
            vq.quantize.embedding.weight.copy_(codebook)
            # The model normalises the entries that it decodes to length 1; the next layer undoes that.
            vq.post_quant_conv.weight.mul_(length)

    def _check(self, config) -> int:
        """The number of levels of a channel."""
        levels = round(config.num_embeddings ** (1 / 3))
        wanted = dict(
            embed_dim=EMBED_DIM,
            num_embeddings=max(levels, 2) ** 3,
            base_channels=128 * max(config.base_channels // 128, 1),
            channel_multiplier=[1] * max(len(config.channel_multiplier), 2),
            num_res_blocks=0,
            latent_channels=max(config.latent_channels, EMBED_DIM),
        )
        wrong = {key: getattr(config, key) for key in wanted if getattr(config, key) != wanted[key]}
        if wrong:
            raise ValueError(
                f'MosaicCodes: vq_config has {wrong}; it needs { ({key: wanted[key] for key in wrong}) } or the like'
            )
        return levels

    def _set_encoder(self, encoder: nn.Module) -> None:
        signals = _lift(encoder.conv_in)
        for level, stage in enumerate(encoder.down):
            if not hasattr(stage, 'downsample'):
                continue
            # Of the three pixels that the convolution sees, the first level averages the last two, and the others take
            # one. What remains is the middle of a tile: pixels 8 i + 3 and 8 i + 4 of tiles of 8.
            last = level == len(encoder.down) - 2
            taps = [1, 2] if level == 0 else [0] if last else [1]
            if level == 0 and last:
                taps = [0, 1]
            weight = stage.downsample.conv.weight
            for signal in signals:
                for row in taps:
                    for column in taps:
                        weight[signal, signal, row, column] = 1 / len(taps) ** 2
            _set_constants(stage.downsample.conv, signals)
        _invert_norm(encoder, signals)
        encoder.conv_out.bias[3] = 1.0

    def _set_decoder(self, decoder: nn.Module) -> None:
        signals = _lift(decoder.conv_in)
        for stage in decoder.up:
            if hasattr(stage, 'upsample'):
                for signal in signals:
                    stage.upsample.conv.weight[signal, signal, 1, 1] = 1.0
                _set_constants(stage.upsample.conv, signals)
        _invert_norm(decoder, signals)


def _lift(conv: nn.Conv2d) -> list[int]:
    """Write the first three channels into three groups of the norms, with constants beside them."""
    signals = [channel * (conv.out_channels // 32) for channel in range(3)]
    for channel, signal in enumerate(signals):
        conv.weight[signal, channel, 1, 1] = 1.0
    _set_constants(conv, signals)
    return signals


def _set_constants(conv: nn.Conv2d, signals: list[int]) -> None:
    assert conv.bias is not None
    for signal in signals:
        conv.bias[signal + 1], conv.bias[signal + 2] = LARGE, -LARGE


def _invert_norm(part: nn.Module, signals: list[int]) -> None:
    """Undo the last norm and its SiLU: a colour is its channel minus the mean of its constants."""
    size = part.norm_out.num_channels // 32
    part.norm_out.weight.fill_(1.0)
    part.norm_out.bias.fill_(LINEAR)
    deviation = LARGE * (2 / size) ** 0.5
    for channel, signal in enumerate(signals):
        weight = part.conv_out.weight[channel, :, 1, 1]
        weight[signal] = deviation
        weight[signal + 1] = weight[signal + 2] = -deviation / 2


def _codebook(levels: int) -> Tensor:
    """Colours c in [-1, 1] as rows (c, -|c|^2 / 2, rest), [levels^3, 5], all of the same length.

    The product of a row with (x, 1, 0) is largest for the colour nearest to x. As all rows have one length, normalising
    them changes nothing.
    """
    steps = torch.linspace(-1, 1, levels, dtype=torch.float64)
    colours = torch.cartesian_prod(steps, steps, steps)
    squares = colours.square().sum(1)
    used = squares + squares.square() / 4
    rest = (used.max() + 1 - used).sqrt()
    return torch.cat([colours, -squares[:, None] / 2, rest[:, None]], dim=1).float()
