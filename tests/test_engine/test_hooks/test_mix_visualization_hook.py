"""Tests of MixVisualizationHook, in a real Runner on a toy model that mixes by a fixed plan."""

from unittest import mock

import numpy as np
import pytest
import tiny_vlms
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from PIL import Image
from torch.utils.data import Dataset

from mergemix_mm.engine.hooks import MixVisualizationHook, mix_visualization_hook
from mergemix_mm.models.batch_augments import MixResult
from mergemix_mm.models.tuners import VLMTuner
from mergemix_mm.toy import ShapesConversationDataset


class ToyDataset(Dataset):
    metainfo = dict(classes=('cat', 'dog', 'owl', 'fox'))

    def __len__(self):
        return 4 * 12

    def __getitem__(self, index):
        return dict(inputs=torch.full((3, 8, 8), 50.0 * (index % 4)), data_samples=DataSample().set_gt_label(index % 4))


class ToyModel(BaseModel):
    """Mixes the batches whose number (from 1) is in `mixed`."""

    def __init__(self, mixed=range(1, 100)):
        super().__init__(data_preprocessor=dict(type='BaseDataPreprocessor'))
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.mixed = mixed
        self.seen = 0
        self.mix_result = None

    def forward(self, inputs, data_samples, mode='tensor'):
        inputs = torch.stack(inputs)
        self.seen += 1
        self.mix_result = None
        if self.seen in self.mixed:
            partner = torch.arange(len(inputs)).roll(1)
            mask = torch.arange(4).expand(len(inputs), 4) < 3
            self.mix_result = MixResult(
                images=0.75 * inputs + 0.25 * inputs[partner],
                partner=partner,
                ratio=torch.full((len(inputs),), 0.75),
                mask=mask,
                saliency=mask.float(),
                grid=(2, 2),
                clean=inputs,
            )
        return dict(loss=self.weight * inputs.mean())


def _train(tmp_path, model, hook, vis_backends=('LocalVisBackend',)):
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=ToyDataset(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=4,
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        custom_hooks=[hook],
        visualizer=dict(type='Visualizer', vis_backends=[dict(type=name) for name in vis_backends]),
        default_scope='mmpretrain',
        experiment_name=f'{tmp_path.name}_mix_visualization',
        default_hooks=dict(checkpoint=None),
    )
    runner.train()
    return runner


def _steps(tmp_path):
    return sorted(int(path.stem.rsplit('_', 1)[1]) for path in tmp_path.rglob('mixed_samples_*.png'))


def test_a_page_is_written_every_interval(tmp_path):
    _train(tmp_path, ToyModel(), dict(type='MixVisualizationHook', interval=5))
    assert _steps(tmp_path) == [5, 10]
    page = np.asarray(Image.open(next(tmp_path.rglob('mixed_samples_5.png'))))
    assert page.shape[0] > page.shape[1] / 2 and page.std() > 10


def test_an_unmixed_batch_is_passed_over_for_the_next_mixed_one(tmp_path):
    _train(tmp_path, ToyModel(mixed=(1, 2, 7, 10)), dict(type='MixVisualizationHook', interval=4))
    assert _steps(tmp_path) == [7, 10]


def test_page_reaches_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _train(tmp_path, ToyModel(), dict(type='MixVisualizationHook', interval=5), ['TensorboardVisBackend'])
    folder = next(tmp_path.rglob('events.out.tfevents*')).parent
    events = EventAccumulator(str(folder), size_guidance=dict(images=0)).Reload()
    images = events.Images('mixed_samples')
    assert [event.step for event in images] == [5, 10]
    assert images[0].width > 100 and images[0].height > 100


def test_figure_gets_labels_classes_and_normalisation_of_the_run(tmp_path):
    model = ToyModel()
    model.data_preprocessor.mean, model.data_preprocessor.std = torch.zeros(3, 1, 1), torch.full((3, 1, 1), 2.0)
    page = np.zeros((4, 4, 3), np.uint8)
    with mock.patch.object(mix_visualization_hook, 'draw_mixed_samples', return_value=page) as draw:
        _train(tmp_path, model, MixVisualizationHook(interval=12, num_images=3, channel_order='bgr'))
    (result,), options = draw.call_args
    assert result is model.mix_result
    assert torch.cat(options['labels']).tolist() == [0, 1, 2, 3]
    assert options['classes'] == ToyDataset.metainfo['classes']
    assert options['std'].flatten().tolist() == [2.0] * 3 and options['mean'].flatten().tolist() == [0.0] * 3
    assert options['max_rows'] == 3 and options['channel_order'] == 'bgr'


def test_model_may_be_wrapped():
    hook, model = MixVisualizationHook(interval=1), ToyModel()
    runner = mock.Mock(model=torch.nn.DataParallel(model), iter=0)
    hook.before_train(runner)
    model([torch.zeros(3, 8, 8)] * 2, None)
    hook.after_train_iter(runner, 0)
    name, page = runner.visualizer.add_image.call_args.args
    assert name == 'mixed_samples' and page.dtype == np.uint8


def test_only_the_main_process_draws():
    hook, model = MixVisualizationHook(interval=1), ToyModel()
    model([torch.zeros(3, 8, 8)] * 2, None)
    runner = mock.Mock(model=model, iter=0)
    with mock.patch.object(mix_visualization_hook, 'is_main_process', return_value=False):
        hook.after_train_iter(runner, 0)
    runner.visualizer.add_image.assert_not_called()


def test_model_without_mix_result_is_refused_before_training(tmp_path):
    model = ToyModel()
    del model.mix_result
    with pytest.raises(TypeError, match='ToyModel.*mix_result.*MixupClassifier'):
        _train(tmp_path, model, MixVisualizationHook())


def _train_vlm(tmp_path, mixer, hook, processor=None):
    """Three steps of preference tuning of a tiny LLaVA on drawn shapes."""
    config = tiny_vlms.tiny_config('llava')
    config['vision_config'] |= dict(image_size=48, patch_size=8)
    vlm = dict(type='HFVisionLanguageModel', config=config)
    torch.manual_seed(0)
    head = dict(type='SFTHead' if mixer is None else 'SimPOHead')
    tuner = VLMTuner(vlm, head, mixer, processor=processor)
    encode = dict(type='EncodeConversation', processor=dict(type='ShapesProcessor'))
    Runner(
        model=tuner,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=dict(type='ShapesConversationDataset', length=9, pipeline=[encode]),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=3,
            collate_fn=dict(type='ConversationCollate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        custom_hooks=[hook],
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        default_scope='mmpretrain',
        experiment_name=f'{tmp_path.name}_mix_visualization_vlm',
        default_hooks=dict(checkpoint=None),
    ).train()
    return tuner


@pytest.mark.parametrize('processor', [dict(type='ShapesProcessor'), None])
def test_preference_tuning_is_drawn_in_the_colours_of_its_images(tmp_path, processor):
    with mock.patch.object(
        mix_visualization_hook, 'draw_mixed_samples', wraps=mix_visualization_hook.draw_mixed_samples
    ) as draw:
        hook = dict(type='MixVisualizationHook', interval=3)
        tuner = _train_vlm(tmp_path, dict(type='MergeMix', num_merge=4), hook, processor)
    assert _steps(tmp_path) == [3]
    (result,), options = draw.call_args
    assert result is tuner.mix_result and len(result.images) == 3 and result.mixed.all()
    drawn = ShapesConversationDataset(length=9)[6]['images'][0]
    pixels = result.clean[0] * options['std'].view(-1, 1, 1) + options['mean'].view(-1, 1, 1)
    difference = np.abs(pixels.permute(1, 2, 0).numpy() - np.asarray(drawn)).max()
    assert difference < 0.01 if processor else 0.01 < difference < 80


def test_a_batch_of_which_nothing_was_mixed_is_passed_over():
    hook, model = MixVisualizationHook(interval=1), ToyModel()
    model.mix_result = mock.Mock(mixed=torch.zeros(2, dtype=torch.bool))
    runner = mock.Mock(model=model, iter=0)
    hook.after_train_iter(runner, 0)
    runner.visualizer.add_image.assert_not_called()


def test_tuner_without_a_mixer_is_refused_before_training(tmp_path):
    with pytest.raises(TypeError, match='VLMTuner.*mixer'):
        _train_vlm(tmp_path, None, dict(type='MixVisualizationHook'))


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(interval=0), 'interval=0'),
        (dict(num_images=0), 'num_images=0'),
        (dict(channel_order='grb'), "channel_order='grb'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MixVisualizationHook(**kwargs)
