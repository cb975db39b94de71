"""Trains a tiny LLaVA on drawn shapes in a plain loop, for benchmarks that need many short runs.

Model and data are those of a config. The loop replaces MMEngine's Runner. Batches and weights depend only on the seed,
so that two arms with one seed differ only in their losers.
"""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from mergemix_mm import config_path
from mergemix_mm.datasets import ConversationCollate
from mergemix_mm.evaluation import AnswerAccuracy, AnswerCalibrationError, POPEMetric
from mergemix_mm.models import VLMTuner

from .loops import fit, random_rows, rows

CONFIG = 'simpo/tiny-llava_1xb64-sft-coslr-300i_shapes.py'


@lru_cache(maxsize=4)
def encode(length: int, generate: bool = False, **kwargs) -> tuple[dict[str, Tensor], list[DataSample]]:
    """A batch of all records of a `ShapesConversationDataset` with the given arguments, and their data samples."""
    pipeline = deepcopy(Config.fromfile(config_path(CONFIG)).train_dataloader.dataset.pipeline)
    pipeline[0].generate = generate
    dataset = DATASETS.build(dict(type='ShapesConversationDataset', length=length, pipeline=pipeline, **kwargs))
    batch = ConversationCollate('left' if generate else 'right')([dataset[i] for i in range(length)])
    return batch['inputs'], batch['data_samples']


def build_tuner(tower: Path, head: dict, mixer: dict | None, seed: int) -> VLMTuner:
    """The model of the config with the pre-trained tower and the given head and mixer."""
    from transformers import CLIPVisionModel

    cfg = deepcopy(Config.fromfile(config_path(CONFIG)).model)
    cfg.vlm.trainable = ['projector', 'language_model']
    cfg.head, cfg.mixer = head, mixer
    torch.manual_seed(seed)
    np.random.seed(seed)  # Augments of MMPretrain draw from numpy.
    tuner = MODELS.build(cfg)
    tuner.vlm.vision_encoder.load_state_dict(CLIPVisionModel.from_pretrained(tower).state_dict())
    return tuner


def train(tuner: VLMTuner, batch: dict[str, Tensor], steps: int, seed: int, batch_size: int = 64) -> None:
    """Train with the optimizer of the config and the schedule of :func:`fit`."""
    settings = Config.fromfile(config_path(CONFIG)).optim_wrapper
    fit(tuner, random_rows([batch], batch_size, seed), steps, settings.optimizer, settings.clip_grad.max_norm)


@torch.no_grad()
def evaluate(tuner: VLMTuner, length: int, batch_size: int = 250, **kwargs) -> dict[str, float]:
    """Answer the questions of a `ShapesConversationDataset` with the given arguments.

    Returns:
        dict: ``accuracy``, ``f1`` (of the yes/no questions) and ``calibration_error`` in percent; ``logp_gap``, the
            decrease in the log-probability of the right answer if each image is replaced by that of another sample.
    """
    tuner.eval()
    prompts, samples = encode(length, generate=True, **kwargs)
    answered, _ = encode(length, **kwargs)
    samples, gaps = deepcopy(samples), []
    for chosen in torch.arange(length).split(batch_size):
        tuner.predict(rows(prompts, chosen), samples[chosen[0] : chosen[-1] + 1])
        own = rows(answered, chosen)
        other = own | dict(pixel_values=own['pixel_values'].roll(1, dims=0))
        gaps.append(tuner.answer_scores(own).sums - tuner.answer_scores(other).sums)
    metrics = [AnswerAccuracy(), AnswerCalibrationError()]
    found = {}
    for metric, part in (*((metric, samples) for metric in metrics), (POPEMetric(), _yes_no(samples))):
        metric.process({}, [sample.to_dict() for sample in part])
        found |= metric.evaluate(len(part))
    return dict(
        accuracy=found['answer/accuracy'],
        logp_gap=torch.cat(gaps).mean().item(),
        f1=found['pope/f1'],
        calibration_error=found['calibration/ece'],
    )


def _yes_no(samples: list[DataSample]) -> list[DataSample]:
    return [sample for sample in samples if sample.question_type == 'yesno']
