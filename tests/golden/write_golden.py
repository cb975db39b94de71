"""Writes tiny models of images with their weights and outputs, as the package had them on 27 November 2026.

``PYTHONPATH=. python tests/golden/write_golden.py NAME ...`` adds models that are new. Those that are there stay as
they are, for good: tests/test_golden.py has them load strictly and give the same outputs. Models of language and vision
are in tests/transformers_versions.
"""

import json
import lzma
import sys
from io import BytesIO
from pathlib import Path

import torch
from mmengine.registry import MODELS

import mergemix_mm  # noqa: F401 - registers the models

FILE = Path(__file__).parent / 'models.pth.xz'
VIT = dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32), img_size=32, patch_size=8)
HEAD = dict(num_classes=5, _scope_='mmpretrain')


def classifier(backbone, head):
    preprocessor = dict(type='ClsDataPreprocessor', num_classes=5, _scope_='mmpretrain')
    train = dict(augments=[dict(type='MergeMix', layer=2, num_merge=4)])
    return dict(type='MixupClassifier', backbone=backbone, head=head, data_preprocessor=preprocessor, train_cfg=train)


def branches():
    convnext = dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1], channels=[8, 16]), out_indices=(1,))
    convnext |= dict(stem_patch_size=2, gap_before_final_norm=False)
    vit = dict(type='mmpretrain.VisionTransformer', out_type='featmap', **VIT)
    return [dict(encoder=vit, input_size=32, frozen=False), dict(encoder=convnext, input_size=32, frozen=False)]


CONFIGS = dict(
    mixup_classifier=classifier(
        dict(type='VisionTransformer', _scope_='mmpretrain', **VIT),
        dict(type='VisionTransformerClsHead', in_channels=16, **HEAD),
    ),
    tome=classifier(
        dict(type='ToMeVisionTransformer', num_merge=6, inflection=-0.5, **VIT),
        dict(type='VisionTransformerClsHead', in_channels=16, **HEAD),
    ),
    mixed_embeddings=dict(
        classifier(dict(type='MultiBackbone', encoders=branches()), dict(type='LinearClsHead', in_channels=12, **HEAD)),
        neck=[
            dict(type='EmbeddingMixNeck', in_channels=[16, 16], out_channels=12, grid=4, output='featmap'),
            dict(type='GlobalAveragePooling', _scope_='mmpretrain'),
        ],
        train_cfg=None,
    ),
    pyramid=dict(type='SimpleFeaturePyramid', in_channels=16, out_channels=8, num_outs=4),
)


def build(config):
    model = MODELS.build(config)
    return model.eval()


@torch.no_grad()
def fill(model):
    """Weights that an archive holds in few bytes, another pattern for each."""
    for index, value in enumerate(model.state_dict().values()):
        if value.is_floating_point() and value.numel() > 1:
            steps = ((torch.arange(value.numel()) * (2 * index + 1) + 13 * index) % 251 - 125) / 512
            # Variances and scales of norms are positive.
            value.copy_(steps.abs() + 0.1 if value.ndim == 1 else steps.reshape(value.shape))
    return model


@torch.no_grad()
def outputs(name, model):
    """What a model says of some images (of maps [2, 16, 4, 4] for a neck), as a list of tensors."""
    size = (2, 16, 4, 4) if name == 'pyramid' else (2, 3, 32, 32)
    x = torch.linspace(-3, 3, torch.Size(size).numel()).sin().view(size)
    found = model((x,)) if name == 'pyramid' else model(x, mode='tensor') if hasattr(model, 'head') else model(x)
    found = list(found) if isinstance(found, list | tuple) else [found]
    if hasattr(model, 'head'):
        found.append(model.head(model.extract_feat(x)))
    return found


def read():
    """By name: the config, weights and outputs."""
    return torch.load(BytesIO(lzma.decompress(FILE.read_bytes())), weights_only=True)


def main(names):
    written = read() if FILE.exists() else {}
    for name in names:
        if name in written:
            raise SystemExit(f'{name} is there already, and stays as it is')
        model = fill(build(json.loads(json.dumps(CONFIGS[name]))))
        written[name] = dict(
            config=json.dumps(CONFIGS[name]), weights=dict(model.state_dict()), outputs=outputs(name, model)
        )
    stream = BytesIO()
    torch.save(written, stream)
    FILE.write_bytes(lzma.compress(stream.getvalue()))


if __name__ == '__main__':
    main(sys.argv[1:] or list(CONFIGS))
