"""The arms and contrasts of the studies of mixing on cluttered digits, fixed before anything was run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .label_mixers import LABELS


class Arm(NamedTuple):
    """How one classifier is trained.

    Args:
        augment (dict, optional): Config of a batch augment (BATCH_AUGMENTS). None does not mix.
        prob (float): Share of mixed batches in [0, 1]. Defaults to 0.5.
        options (dict): Changes of the config, see `build_classifier`. Defaults to none.
        lengths (int): The training has this many times the steps of other arms. Defaults to 1.
        stream (int): Added to the seed of the mixes, but not to that of weights and order. Defaults to 0.
    """

    augment: dict | None
    prob: float = 0.5
    options: Mapping[str, Any] = {}
    lengths: int = 1
    stream: int = 0


class Study(NamedTuple):
    """Arms that share their seeds.

    Args:
        arms (dict[str, Arm]): By name.
        reference (str): The arm that all others are compared with.
        seeds (int): Paired runs of each arm.
        contrasts (dict): The differences that are tested, with Holm's correction for their number: weights of arms, by
            the name of the contrast. Everything else in the tables is descriptive.
    """

    arms: dict[str, Arm]
    reference: str
    seeds: int
    contrasts: dict[str, dict[str, float]]


CUTMIX = dict(type='CutMix', alpha=1.0)
MIXUP = dict(type='Mixup', alpha=0.8)
MERGEMIX = dict(type='MergeMix')

# Half of the 64 patches merge over all layers, in training and in the test. The paper's clean pass scores with them.
MERGED_BACKBONE = {
    'model.backbone.type': 'ToMeVisionTransformer',
    'model.backbone.num_merge': 32,
    'model.backbone.inflection': -0.5,
}
CLEAN = {'model.clean_weight': 1.0}
RELEASED = {**MERGED_BACKBONE, 'model.base_augment': MIXUP, 'model.ratio_reduce': 'batch_mean'}

REGISTERS = {'model.backbone.type': 'ToMeVisionTransformer', 'model.backbone.num_registers': 4}

# Options of MergeMix that differ from its defaults: the label by attention, layer 3 of 4, half of the patches merged.
VARIANTS = {
    'gaussian': dict(ratio='gaussian'),
    'topk mask': dict(mask='topk'),
    'random mask': dict(mask='random'),
    'layer 4': dict(layer=4),
    'value_norm': dict(saliency='value_norm'),
    'mean, layer 4': dict(saliency='mean', layer=4),
    # The two passes that scoring_frontier.py finds at least as good or half as long.
    'layer 4, smaller images': dict(layer=4, score_scale=0.75),
    'layer 4, smaller images, 75% merged': dict(layer=4, score_scale=0.75, num_merge=27),  # Of 36 patches.
}

# Mixers with the defaults of the package, as they are registered.
RIVALS = (
    'SmoothMix',
    'GridMix',
    'FMix',
    'SaliencyMix',
    'AttentiveMix',
    'GuidedMix',
    'PuzzleMix',
    'OACutMix',
    'TransMix',
    'TokenMix',
    'SMMix',
    'MixPro',
    'TdAttenMix',
)

MIXES = {
    'none': Arm(None),
    'Mixup': Arm(MIXUP),
    'CutMix': Arm(CUTMIX),
    'ResizeMix': Arm(dict(type='ResizeMix', alpha=1.0)),
}


def _mean_difference(label: str, other: str) -> dict[str, float]:
    """Label minus label, as the mean over both masks."""
    return {f'{mask}, {name}': sign / 2 for mask in MASKS for name, sign in ((label, 1), (other, -1))}


MASKS = {'box': 'LabelledCutMix', 'MergeMix': 'LabelledMergeMix'}
LABELLED = {f'{mask}, {label}': Arm(dict(type=mixer, label=label)) for mask, mixer in MASKS.items() for label in LABELS}

STUDIES = {
    'labels': Study(
        LABELLED,
        reference='box, area',
        seeds=5,
        contrasts={
            'attention - area': _mean_difference('attention', 'area'),
            'attention - shuffled': _mean_difference('attention', 'shuffled'),
            'visible - attention': _mean_difference('visible', 'attention'),
        },
    ),
    'schemes': Study(
        {
            'CutMix': Arm(CUTMIX),
            'CutMix, other mixes': Arm(CUTMIX, stream=1000),
            'CutMix + clean loss': Arm(CUTMIX, 1.0, CLEAN),
            'Mixup': Arm(MIXUP),
            'MergeMix, lean': Arm(MERGEMIX),
            'MergeMix, lean, twice the steps': Arm(MERGEMIX, lengths=2),
            'MergeMix, paper': Arm(MERGEMIX, 1.0, {**MERGED_BACKBONE, **CLEAN}),
            'MergeMix, released': Arm(dict(type='MergeMix', ratio='gaussian'), 1.0, RELEASED),
        },
        reference='CutMix',
        seeds=8,
        contrasts={
            'lean - CutMix': {'MergeMix, lean': 1, 'CutMix': -1},
            'paper - CutMix + clean loss': {'MergeMix, paper': 1, 'CutMix + clean loss': -1},
            'lean, twice the steps - paper': {'MergeMix, lean, twice the steps': 1, 'MergeMix, paper': -1},
        },
    ),
    'rivals': Study(
        {**MIXES, **{name: Arm(dict(type=name)) for name in RIVALS}, 'MergeMix, lean': Arm(MERGEMIX)},
        reference='CutMix',
        seeds=3,
        contrasts={},
    ),
    'variants': Study(
        {
            'MergeMix, lean': Arm(MERGEMIX),
            'MergeMix, area': LABELLED['MergeMix, area'],
            **{f'MergeMix, {name}': Arm(dict(MERGEMIX, **options)) for name, options in VARIANTS.items()},
            'MergeMix, 4 registers': Arm(MERGEMIX, options=REGISTERS),
        },
        reference='MergeMix, lean',
        seeds=3,
        contrasts={},
    ),
}

# Studies that share an arm share its name and its runs.
ARMS = {name: arm for study in STUDIES.values() for name, arm in study.arms.items()}
