"""Trains a tiny Janus to read and to draw shapes in a plain loop, for benchmarks that need many short runs.

Model and data are those of a config, with smaller images. The loop replaces MMEngine's Runner. Batches, weights and
dropped prompts depend only on the seed.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from mergemix_mm import config_path
from mergemix_mm.datasets import UnifiedCollate
from mergemix_mm.evaluation import AnswerAccuracy
from mergemix_mm.models.attention import InteractionAlignment, InteractionRecorder, interaction_spans
from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.tuners import UnifiedTuner
from mergemix_mm.toy import ShapesGenerationMetric
from mergemix_mm.toy.mosaic_codes import MosaicCodes

from .loops import Batch, fit, random_rows, rows

CONFIG = 'aia/tiny-janus_1xb32-ntp-coslr-400i_shapes.py'
IMAGE_SIZE = 48  # 6 x 6 tokens and codes take half the time of the 8 x 8 of the config.
TASKS = ('gen', 'und')


@lru_cache(maxsize=1)
def load_config() -> Config:
    """The config with images of `IMAGE_SIZE`."""
    cfg = Config.fromfile(config_path(CONFIG))
    vision = cfg.model.vlm.config.vision_config
    vision.update(image_size=IMAGE_SIZE, num_image_tokens=(IMAGE_SIZE // vision.patch_size) ** 2)
    cfg.model.vlm.init_cfg = None  # `build_tuner` sets the codes, because MMEngine would log every weight.
    datasets = cfg.train_dataloader.dataset
    for processor in (cfg.model.processor, *(datasets[task].pipeline[0].processor for task in TASKS)):
        processor.image_size = IMAGE_SIZE
    for task in TASKS:
        datasets[task].image_size = IMAGE_SIZE
    return cfg


def build_tuner(seed: int) -> UnifiedTuner:
    """The model of the config with random weights. All seeds have the same VQ model."""
    torch.manual_seed(seed)
    tuner = MODELS.build(deepcopy(load_config().model))
    MosaicCodes()(tuner.vlm)
    return tuner


@lru_cache(maxsize=8)
def encode(task: str, length: int, seed: int = 0, generate: bool = False) -> tuple[Batch, list[DataSample]]:
    """A batch of all records of the dataset of a task, with codes instead of the images to be generated."""
    settings = deepcopy(load_config().train_dataloader.dataset[task])
    settings.update(length=length, seed=seed)
    settings.pipeline[0].generate = generate
    dataset = DATASETS.build(settings)
    batch = UnifiedCollate('left' if generate else 'right')([dataset[i] for i in range(length)])
    inputs, images = batch['inputs'], batch['inputs'].pop('target_images', None)
    if images is not None:
        vlm = build_tuner(0).vlm.eval()
        inputs['codes'] = torch.cat([vlm.encode_images(part) for part in images.split(100)])
    return inputs, batch['data_samples']


def true_images(length: int, seed: int) -> dict[str, float]:
    """``color`` and ``position`` of :func:`measure_task` for drawn images that the VQ model encodes and decodes."""
    batch, samples = encode('gen', length, seed)
    vlm, samples = build_tuner(0).vlm.eval(), deepcopy(samples)
    with torch.no_grad():
        images = vlm.decode_codes(batch['codes'].unflatten(1, vlm.code_grid(batch)))
    for sample, image in zip(samples, images, strict=True):
        sample.pred_image = ((image + 1) / 2).clamp(0, 1)
    return _metrics('gen', samples)


def train(
    tuner: UnifiedTuner,
    batches: dict[str, Batch],
    steps: int,
    seed: int,
    aia: AIALoss | None = None,
    batch_size: int = 32,
) -> None:
    """Train with the optimizer of the config and the schedule of :func:`fit`.

    Args:
        tuner (UnifiedTuner): Trained in place.
        batches (dict[str, dict]): The samples of each task. The tasks take turns.
        steps (int): Number of steps of all tasks together.
        seed (int): Seed of the order of the samples and of the dropped prompts.
        aia (AIALoss, optional): The loss of AIA. Defaults to None, which trains next tokens only.
        batch_size (int): Samples in a step. Defaults to 32.
    """
    settings = load_config().optim_wrapper
    torch.manual_seed(seed)
    if aia is not None:
        tuner.alignment = InteractionAlignment(tuner.vlm, aia, tasks=list(batches))
        tuner.alignment.recorder.start()
    batches = random_rows(batches.values(), batch_size, seed)
    fit(tuner, batches, steps, settings.optimizer, settings.clip_grad.max_norm)
    if aia is not None:
        tuner.alignment.recorder.stop()
        tuner.alignment = None


@torch.no_grad()
def measure_task(
    tuner: UnifiedTuner, task: str, length: int, seed: int, batch_size: int = 200
) -> tuple[dict[str, float], Tensor]:
    """Test a task on new images of the pairs of colour and shape that training shows.

    Args:
        tuner (UnifiedTuner): The tuner, which is put into eval mode.
        task (str): ``'gen'`` or ``'und'``.
        length (int): Number of samples.
        seed (int): Seed of the samples. That of training is 0.
        batch_size (int): Samples at a time. ``length`` must be a multiple of it, or smaller. Defaults to 200.

    Returns:
        tuple: Numbers by name, and the interaction [layers, samples]. The numbers are ``ntp_<task>``, the next-token
            loss in nats per 100 tokens, and in percent ``accuracy`` of answers, or ``color`` and ``position`` of
            generated images.
    """
    tuner.eval()
    batch, _ = encode(task, length, seed)
    prompts, samples = encode(task, length, seed, generate=True)
    samples, drop_prompt, tuner.drop_prompt = deepcopy(samples), tuner.drop_prompt, 0.0
    torch.manual_seed(seed)  # Codes are sampled.
    losses, interaction = [], []
    for chosen in torch.arange(length).split(batch_size):
        part = rows(batch, chosen)
        losses.append(tuner.loss(part)[f'loss_ntp_{task}'])
        interaction.append(measure_interaction(tuner, task, part))
        tuner.predict(rows(prompts, chosen), samples[chosen[0] : chosen[-1] + 1])
    tuner.drop_prompt = drop_prompt
    return {f'ntp_{task}': 100 * torch.stack(losses).mean().item()} | _metrics(task, samples), torch.cat(interaction, 1)


def measure_interaction(tuner: UnifiedTuner, task: str, batch: Batch) -> Tensor:
    """The interaction of each layer and sample, [layers, B] in [0, 1]."""
    batch = tuner.vlm.prepare(batch)
    with InteractionRecorder(tuner.vlm) as recorder:
        recording = recorder.recording(*interaction_spans(task, tuner.vlm.modality(batch), batch['labels']))
        tuner.vlm.hidden(batch, **recording.attention_kwargs)
    return recording.intensity().clamp(0, 1)  # Rounding lets sums of probabilities exceed 1.


def _metrics(task: str, samples: Sequence[DataSample]) -> dict[str, float]:
    metric = AnswerAccuracy() if task == 'und' else ShapesGenerationMetric()
    metric.dataset_meta = DATASETS.get(load_config().train_dataloader.dataset[task].type).METAINFO
    metric.process({}, [sample.to_dict() for sample in samples])
    found = metric.evaluate(len(samples))
    names = dict(accuracy='answer/accuracy') if task == 'und' else {k: f'generation/{k}' for k in ('color', 'position')}
    return {name: found[key] for name, key in names.items()}
