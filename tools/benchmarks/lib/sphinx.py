"""Trains a tiny SPHINX on drawn shapes in a plain loop, for shapes_sphinx.py, which needs many short runs.

Its two frozen encoders need each other: one sees no colours, the other no shapes. The language model is that of a
config. The loop replaces MMEngine's Runner. Batches and weights depend on the seed only.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, MODELS
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mergemix_mm import config_path
from mergemix_mm.datasets import ConversationCollate, TaskMixDataset, TaskMixSampler
from mergemix_mm.functional import resize
from mergemix_mm.models import VLMTuner
from mergemix_mm.models.backbones.encoder_branch import EncoderBranch
from mergemix_mm.toy import ShapesTaskDataset
from mergemix_mm.toy.scenes import ANSWERS, shapes_facts
from mergemix_mm.utils.files import replaced_file, replaced_folder
from mergemix_mm.utils.tables import markdown_table

from .loops import Batch, fit, rows
from .tower import labelled, pretrain_tower

SIZE, PATCH = 48, 8
WIDTH = 64
GRIDS = (3, 6)  # Things of 16 and of 8 pixels, for both arms of the study of small things.
TRAIN_SEED, TEST_SEED = 10, 11


def grey(images: Tensor) -> Tensor:
    """The mean of the channels [B, 3, H, W], which shows all shapes, but only the brightness of colours."""
    return images.mean(dim=1, keepdim=True).expand_as(images)


def blurred(images: Tensor) -> Tensor:
    """About one tone for each patch [B, 3, H, W], which shows the colours and roughly their places."""
    tones = resize(images, tuple(side // PATCH for side in images.shape[-2:]))
    return resize(tones, tuple(images.shape[-2:]))


# What each encoder sees, and the share of the images in pre-training that keep their colours.
ENCODERS = dict(grey=(grey, 0.0), colour=(blurred, 1.0))


class SeeingEncoder(nn.Module):
    """A tower that sees a part of an image. It gives a map [B, C, h, w] with an embedding of the places of patches.

    Pre-training asks for the content of a cell and not for its place, so the tower forgets the places. A fixed
    embedding of them is added to its output.

    Args:
        tower (CLIPVisionModel): The tower.
        name (str): One of `ENCODERS`.
    """

    def __init__(self, tower: CLIPVisionModel, name: str) -> None:
        super().__init__()
        self.branch, self.see = EncoderBranch(tower), ENCODERS[name][0]
        places = build_2d_sincos_position_embedding(SIZE // PATCH, WIDTH)
        self.register_buffer('places', places.transpose(1, 2).unflatten(2, (SIZE // PATCH, -1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.branch(self.see(images)).features + self.places


def scenes(steps: int, batch_size: int, seed: int, grids: tuple[int, ...] = GRIDS) -> Iterator[tuple[Tensor, ...]]:
    """Batches of images, colours and shapes. Large and small things take turns."""
    sets = [ShapesTaskDataset('caption', length=steps * batch_size, image_size=SIZE, grid=g, seed=seed) for g in grids]
    for step in range(steps):
        dataset = sets[step % len(sets)]
        indices = range(step * batch_size, (step + 1) * batch_size)
        yield labelled([dataset.get_data_info(i) for i in indices], dataset.grid)


def pretrain_encoders(folder: Path, steps: int, num_images: int = 512) -> None:
    """Train both encoders, write them to a folder as a whole, and print how well they read new images."""
    lines = []
    sizes = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3, num_attention_heads=4)
    with replaced_folder(folder) as part:
        for name, (see, coloured) in ENCODERS.items():
            config = CLIPVisionConfig(image_size=SIZE, patch_size=PATCH, **sizes)
            data = scenes(steps, 64, TRAIN_SEED)
            tower, heads = pretrain_tower(steps, config=config, data=data, coloured=coloured, see=see)
            tower.save_pretrained(part / name)
            for grid in GRIDS:
                images, *labels = next(scenes(1, num_images, TEST_SEED, (grid,)))
                with torch.no_grad():
                    logits = heads(tower(see(images)), grid)[1][int(not coloured)]
                label = labels[int(not coloured)]
                right = (logits.argmax(-1) == label)[label > 0].float().mean().item()
                lines.append([name, 'colours' if coloured else 'shapes', f'{SIZE // grid} px', f'{100 * right:.1f}'])
    print(markdown_table(('encoder', 'reads', 'cells of', 'right %'), lines), end='\n\n', flush=True)


@lru_cache(maxsize=4)
def load_encoder(folder: Path, name: str) -> SeeingEncoder:
    """An encoder of :func:`pretrain_encoders`, which is cached and must not be trained."""
    return SeeingEncoder(CLIPVisionModel.from_pretrained(folder / name), name)


# --- The tuner and its data -------------------------------------------------------------------------------------------

CONFIG = '_base_/models/tiny-sphinx_shapes.py'
OPTIMIZER = dict(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
MAX_NORM = 1.0
DECIMALS = 2


class Task(NamedTuple):
    """The transforms of a task, its longest answer, and its score."""

    transforms: list[dict]
    max_new_tokens: int
    metric: str
    score: str


TASKS = dict(
    vqa=Task([dict(type='ShortAnswerTask')], 3, 'AnswerAccuracy', 'answer/accuracy'),
    grounding=Task([dict(type='GroundingTask', decimals=DECIMALS)], 10, 'ReferringBoxMetric', 'box/accuracy'),
    detection=Task([dict(type='DetectionTask', decimals=DECIMALS)], 52, 'TextDetectionMetric', 'detection/mAP_50'),
    caption=Task([dict(type='CaptionTask')], 24, 'ANLSMetric', 'answer/anls'),
    grounded_caption=Task([dict(type='GroundedCaptionTask', decimals=DECIMALS)], 96, 'ANLSMetric', 'answer/anls'),
    text_only=Task([dict(type='TextOnlyTask')], 0, 'AnswerLoss', 'answer/loss'),
    **{kind: Task([], 3, 'AnswerAccuracy', 'answer/accuracy') for kind in ANSWERS},
)


class Mix(NamedTuple):
    """The encoded records of several tasks: a batch for each modality, and the place of each record in its batch."""

    dataset: TaskMixDataset
    batches: list[Batch]
    places: Tensor


@lru_cache(maxsize=1)
def load_config() -> Config:
    """The config with the language model, the processor and the tuner of the benchmark."""
    return Config.fromfile(config_path(CONFIG))


def build_tuner(
    folder: Path,
    seed: int,
    encoders: Sequence[str] = tuple(ENCODERS),
    fuse: str = 'concat',
    views: int = 1,
    trainable: Sequence[str] = ('projector', 'language_model'),
) -> VLMTuner:
    """The model of the config with frozen encoders of a folder.

    Args:
        folder (Path): The folder of :func:`pretrain_encoders`.
        seed (int): Seed of the weights.
        encoders (Sequence[str]): Some of `ENCODERS`. Defaults to all.
        fuse (str): ``fuse`` of the neck. Defaults to ``'concat'``.
        views (int): Crops on each side; 1 is only the whole image. Defaults to 1.
        trainable (Sequence[str]): Parts that train. Defaults to the projector and the language model.
    """
    parts = [dict(encoder=load_encoder(folder, name), input_size=SIZE) for name in encoders]
    model = deepcopy(load_config().model).to_dict()
    model['vlm'] |= dict(backbone=dict(type='MultiBackbone', encoders=parts), grid=views, trainable=trainable)
    model['vlm']['neck'] |= dict(in_channels=[WIDTH] * len(parts), fuse=fuse)
    torch.manual_seed(seed)
    return MODELS.build(model)


def dataset_config(
    task: str,
    length: int,
    seed: int,
    generate: bool = False,
    views: int = 1,
    small: bool = False,
    instructed: bool = True,
) -> dict:
    """The config of the records of a task.

    Args:
        task (str): One of `TASKS`.
        length (int): Number of records.
        seed (int): Seed of the images.
        generate (bool): Whether only prompts are encoded. Defaults to False.
        views (int): ``views`` of the model. Defaults to 1.
        small (bool): Whether the image is twice as large, with things of the same size. Defaults to False.
        instructed (bool): Whether the prompt names the task. Defaults to True.
    """
    image_size = 2 * SIZE if small else SIZE
    processor = dict(load_config().processor, image_size=image_size, grid=views)
    encode = dict(type='EncodeConversation', processor=processor, generate=generate)
    common = dict(length=length, image_size=image_size, seed=seed)
    if task in ANSWERS:
        return dict(type='ShapesConversationDataset', questions=(task,), pipeline=[encode], **common)
    transforms = [one if instructed else dict(one, instruction=None) for one in TASKS[task].transforms]
    grid = GRIDS[small]
    return dict(type='ShapesTaskDataset', task=task, grid=grid, pipeline=[*transforms, encode], **common)


@lru_cache(maxsize=16)
def encode_mix(tasks: tuple[tuple[str, float], ...], length: int, seed: int = 0, **options) -> Mix:
    """Encode ``length`` records of each task, which has a weight; options are those of :func:`dataset_config`."""
    dataset = TaskMixDataset(
        {name: dict(dataset=dataset_config(name, length, seed, **options), weight=weight) for name, weight in tasks}
    )
    groups, places, batches = torch.from_numpy(dataset.groups), torch.empty(len(dataset), dtype=torch.long), []
    for group in range(int(groups.max()) + 1):
        members = (groups == group).nonzero().flatten()
        places[members] = torch.arange(len(members))
        batches.append(ConversationCollate()([dataset[i] for i in members.tolist()])['inputs'])
    return Mix(dataset, batches, places)


@lru_cache(maxsize=16)
def encode_test(task: str, length: int, seed: int, **options) -> tuple[Batch, list[DataSample]]:
    """Encode the test of a task: prompts, or whole conversations if given answers are scored."""
    generate = TASKS[task].max_new_tokens > 0
    dataset = DATASETS.build(dataset_config(task, length, seed, generate=generate, **options))
    batch = ConversationCollate('left' if generate else 'right')([dataset[i] for i in range(length)])
    return batch['inputs'], batch['data_samples']


def mixed_rows(mix: Mix, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of `TaskMixSampler`, cut to their longest conversation."""
    sampler, groups = TaskMixSampler(mix.dataset, batch_size, seed=seed), mix.dataset.groups
    for epoch in count():
        sampler.set_epoch(epoch)
        for chosen in torch.tensor(list(sampler)).split(batch_size):
            batch = rows(mix.batches[groups[chosen[0]]], mix.places[chosen])
            length = int(batch['attention_mask'].sum(dim=1).max())
            tokens = ('input_ids', 'attention_mask', 'labels')
            yield batch | {key: batch[key][:, :length] for key in tokens}


def train(tuner: VLMTuner, mix: Mix, steps: int, seed: int, batch_size: int = 16) -> None:
    """Train by AdamW on batches of the mix. ``seed`` is that of their order."""
    fit(tuner, mixed_rows(mix, batch_size, seed), steps, OPTIMIZER, MAX_NORM)


def pretrain_language_model(folder: Path, steps: int, seed: int) -> None:
    """Teach a language model the facts of the text-only task, and write its weights to a folder of encoders."""
    tuner, length = build_tuner(folder, seed, trainable=('language_model',)), len(shapes_facts())
    train(tuner, encode_mix((('text_only', 1),), length), steps, seed)
    loss = evaluate(tuner, 'text_only', length, seed)['text_only']
    print(f'language model, seed {seed}: {loss:.3f} nats / token on {length} facts', flush=True)
    path = language_model_path(folder, seed)
    with replaced_file(path) as temporary:
        torch.save(_language_model(tuner).state_dict(), temporary)


def load_language_model(tuner: VLMTuner, folder: Path, seed: int) -> None:
    """Give a tuner the language model of :func:`pretrain_language_model`."""
    _language_model(tuner).load_state_dict(torch.load(language_model_path(folder, seed), weights_only=True))


def language_model_path(folder: Path, seed: int) -> Path:
    """The file of :func:`pretrain_language_model`."""
    return folder / f'language_model_{seed}.pt'


def _language_model(tuner: VLMTuner) -> nn.Module:
    return tuner.vlm.model.language_model


@torch.no_grad()
def evaluate(tuner: VLMTuner, task: str, length: int, seed: int, batch_size: int = 200, **options) -> dict[str, float]:
    """Test a task on new images of the pairs of colour and shape that training shows.

    Args:
        tuner (VLMTuner): The tuner, which is put into eval mode.
        task (str): One of `TASKS`.
        length (int): Number of records.
        seed (int): Seed of the records. That of training is 0.
        batch_size (int): Records at a time. Defaults to 200.
        **options: Those of :func:`dataset_config`.

    Returns:
        dict: The score of the task by its name, and other values of its metric by ``task/name``.
    """
    tuner.eval()
    inputs, samples = encode_test(task, length, seed, **options)
    samples = deepcopy(samples)
    tuner.generation = dict(max_new_tokens=TASKS[task].max_new_tokens)
    for chosen in torch.arange(length).split(batch_size):
        tuner.predict(rows(inputs, chosen), samples[chosen[0] : chosen[-1] + 1])
    metric = METRICS.build(dict(type=TASKS[task].metric))
    metric.process({}, [sample.to_dict() for sample in samples])
    found = metric.evaluate(length)
    return {task: found.pop(TASKS[task].score)} | {
        f'{task}/{key.partition("/")[2]}': value for key, value in found.items()
    }
