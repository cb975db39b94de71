"""Numeric options of heads, losses, hooks, mixers, tuners, samplers and metrics: what is no number is refused."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from mergemix_mm.datasets import ModalitySampler, TaskMixDataset, UnifiedDataset
from mergemix_mm.datasets.transforms import EncodeConversation
from mergemix_mm.datasets.transforms.tasks import GroundingTask
from mergemix_mm.engine.hooks import AIAHook, MixVisualizationHook, NonFiniteLossHook, SavePretrainedHook, WeightMixHook
from mergemix_mm.evaluation import ANLSMetric, CalibrationError, ReferringBoxMetric, RelaxedAccuracy
from mergemix_mm.models import (
    AIALoss,
    EmbeddingMixNeck,
    MergeMix,
    SimpleFeaturePyramid,
    SimPOHead,
    SimPOLoss,
    ToMeVisionTransformer,
    VLMTuner,
)
from mergemix_mm.models.batch_augments import SalientBlur
from mergemix_mm.utils.numbers import check_number, is_number


class Records(list):
    modalities = (True,)


NO_NUMBERS = [math.nan, math.inf, -math.inf, True, '1', None, [1]]
OPTIONS = {
    'SimPOHead.beta': lambda value: SimPOHead(beta=value),
    'SimPOHead.margin': lambda value: SimPOHead(margin=value),
    'SimPOHead.label_smoothing': lambda value: SimPOHead(label_smoothing=value),
    'SimPOHead.sft_weight': lambda value: SimPOHead(sft_weight=value),
    'SimPOHead.loser_sft_weight': lambda value: SimPOHead(loser_sft_weight=value),
    'SimPOLoss.beta': lambda value: SimPOLoss(beta=value),
    'AIALoss.weight': lambda value: AIALoss(weight=dict(gen=value, und=1)),
    'AIALoss.weight.ntp_over_aia': lambda value: AIALoss(weight=dict(type='ratio', ntp_over_aia=value)),
    'AIALoss.schedule': lambda value: AIALoss(schedule=[(0, value)]),
    'AIALoss.schedule, progress': lambda value: AIALoss(schedule=[(value, 1)]),
    'AIALoss.targets.delta': lambda value: AIALoss(dict(gen=[dict(depth=(0, 1), target=0.4, delta=value)])),
    'AIALoss.targets.target': lambda value: AIALoss(dict(gen=[dict(depth=(0, 1), target=value, delta=0.2)])),
    'AIAHook.interval': lambda value: AIAHook(interval=value),
    'MixVisualizationHook.interval': lambda value: MixVisualizationHook(interval=value),
    'MixVisualizationHook.num_images': lambda value: MixVisualizationHook(num_images=value),
    'SavePretrainedHook.interval': lambda value: SavePretrainedHook(interval=value),
    'NonFiniteLossHook.patience': lambda value: NonFiniteLossHook(patience=value),
    'WeightMixHook.beta': lambda value: WeightMixHook('a', 'b', beta=value),
    'MergeMix.alpha': lambda value: MergeMix(alpha=value),
    'MergeMix.num_merge': lambda value: MergeMix(num_merge=value),
    'MergeMix.layer': lambda value: MergeMix(layer=value),
    'MergeMix.inflection': lambda value: MergeMix(inflection=value),
    'SalientBlur.sigma': lambda value: SalientBlur(sigma=value),
    'ModalitySampler.batch_size': lambda value: ModalitySampler(SimpleNamespace(modalities=[True] * 4), value),
    'ModalitySampler.seed': lambda value: ModalitySampler(SimpleNamespace(modalities=[True] * 4), 2, seed=value),
    'UnifiedDataset.ratio': lambda value: UnifiedDataset([], [], ratio=dict(gen=value, und=1)),
    'TaskMixDataset.weight': lambda value: TaskMixDataset(
        dict(a=dict(dataset=Records([1]), weight=value), b=dict(dataset=Records([1]), weight=1))
    ),
    'ToMeVisionTransformer.num_merge': lambda value: ToMeVisionTransformer('deit-tiny', num_merge=value),
    'ToMeVisionTransformer.inflection': lambda value: ToMeVisionTransformer('deit-tiny', inflection=value),
    'GroundingTask.decimals': lambda value: GroundingTask(decimals=value),
    'EncodeConversation.max_length': lambda value: EncodeConversation(dict(type='ShapesProcessor'), max_length=value),
    'VLMTuner.chunk_size': lambda value: VLMTuner(nn.Identity(), head=dict(type='SFTHead'), chunk_size=value),
    'EmbeddingMixNeck.scales': lambda value: EmbeddingMixNeck([8], 8, output='featmap', scales=(value,)),
    'SimpleFeaturePyramid.num_outs': lambda value: SimpleFeaturePyramid(8, num_outs=value),
    'ReferringBoxMetric.iou_threshold': lambda value: ReferringBoxMetric(iou_threshold=value),
    'ANLSMetric.threshold': lambda value: ANLSMetric(threshold=value),
    'RelaxedAccuracy.tolerance': lambda value: RelaxedAccuracy(tolerance=value),
    'CalibrationError.bins': lambda value: CalibrationError(bins=value),
}
# None has a meaning of its own there.
OPTIONAL = (
    'EncodeConversation.max_length',
    'SavePretrainedHook.interval',
    'MergeMix.num_merge',
    'MergeMix.layer',
    'ModalitySampler.seed',
)


@pytest.mark.parametrize('option', OPTIONS)
def test_what_is_no_number_is_refused_in_one_line(option):
    for value in NO_NUMBERS:
        if value is None and option in OPTIONAL:
            continue
        with pytest.raises(ValueError, match=option.split('.')[0].removesuffix('Head')) as caught:
            OPTIONS[option](value)
        assert '\n' not in str(caught.value)
        assert str(value) in str(caught.value)


def test_the_option_and_the_value_are_named():
    with pytest.raises(ValueError, match=r"SimPOHead: margin=nan must be 'mixing' or a number"):
        SimPOHead(margin=math.nan)
    with pytest.raises(ValueError, match=r'beta=inf must be > 0 and finite'):
        SimPOHead(beta=math.inf)
    with pytest.raises(ValueError, match=r'AIAHook: interval=nan must be at least 1'):
        AIAHook(interval=math.nan)


def test_numbers_of_numpy_and_the_ends_of_ranges_are_numbers():
    assert is_number(np.float32(0.5), least=0, most=1) and is_number(np.int64(3), integer=True)
    assert is_number(0, least=0) and not is_number(0, above=0) and not is_number(1, below=1)
    assert not is_number(1.0, integer=True) and not is_number(np.bool_(True))
    with pytest.raises(ValueError, match='a: b=2 must be small'):
        check_number('a: b', 2, 'small', most=1)
