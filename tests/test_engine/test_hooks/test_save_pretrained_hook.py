"""The folder that SavePretrainedHook writes, and what it refuses before training."""

import os
from types import SimpleNamespace

import pytest
import tiny_vlms
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mergemix_mm.engine.hooks import SavePretrainedHook
from mergemix_mm.models.vlms import HFVisionLanguageModel


class Prompts(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.arange(10, 15) + index


class Tuner(BaseModel):
    def __init__(self, processor=None):
        super().__init__(data_preprocessor=dict(type='BaseDataPreprocessor'))
        torch.manual_seed(0)
        self.vlm = HFVisionLanguageModel(config=tiny_vlms.tiny_config('llava'))
        self.processor = processor

    def forward(self, inputs, mode):
        return dict(loss=self.vlm.head(self.vlm.hidden(dict(input_ids=torch.stack(inputs['ids'])))).square().mean())


def train(tmp_path, model, hook):
    runner = Runner(
        model=model,
        work_dir=str(tmp_path / 'work'),
        train_dataloader=dict(
            dataset=Prompts(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
            collate_fn=lambda samples: dict(inputs=dict(ids=samples)),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[hook],
        default_hooks=dict(checkpoint=None),
        experiment_name=f'save-{os.urandom(4).hex()}',
    )
    runner.train()
    return runner


def test_the_trained_model_and_the_tuners_processor_reload_in_plain_transformers(tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    tuner = Tuner(tiny_vlms.tiny_processor('llava'))
    before = tuner.vlm.head.weight.clone()
    train(tmp_path, tuner, dict(type='SavePretrainedHook'))
    folder = tmp_path / 'work' / 'pretrained'
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, tuner.vlm.head.weight)
    assert not torch.equal(model.lm_head.weight, before)
    inputs = AutoProcessor.from_pretrained(folder)(
        text=['<image>hello'], images=[tiny_vlms.random_image(30, 30, 0)], return_tensors='pt'
    )
    logits = tuner.vlm.head(tuner.vlm.hidden(dict(inputs)))
    assert torch.equal(model(**inputs).logits, logits)


def test_it_saves_every_interval_into_one_folder(tmp_path, monkeypatch):
    saved = []
    tuner = Tuner()
    save = tuner.vlm.save_pretrained
    monkeypatch.setattr(tuner.vlm, 'save_pretrained', lambda folder: (saved.append(folder), save(folder)))
    train(tmp_path, tuner, SavePretrainedHook(str(tmp_path / 'out'), interval=2))
    assert len(saved) == 3  # After iterations 2 and 4, and after training.
    assert {path.name for path in tmp_path.iterdir()} == {'work', 'out'}
    assert (tmp_path / 'out' / 'model.safetensors').is_file()


class Other(BaseModel):
    forward = None


@pytest.mark.parametrize(
    'model, options, error, message',
    [
        (Other, {}, TypeError, 'Other.*VLMTuner'),
        (Tuner, dict(processor=object()), TypeError, 'object.*save_pretrained'),
        (Tuner, dict(out_dir='{folder}'), FileExistsError, 'iter_500.pth'),
    ],
)
def test_what_cannot_be_saved_is_refused_before_training(tmp_path, model, options, error, message):
    (tmp_path / 'iter_500.pth').touch()
    options = {key: str(tmp_path) if value == '{folder}' else value for key, value in options.items()}
    with pytest.raises(error, match=message):
        SavePretrainedHook(**options).before_train(SimpleNamespace(model=model(), work_dir=str(tmp_path / 'work')))


def test_the_dtype_is_that_of_the_vlm_or_the_one_that_is_asked_for(tmp_path):
    from safetensors.torch import load_file

    for dtype, expected in ((None, torch.float32), ('bfloat16', torch.bfloat16)):
        folder = tmp_path / str(dtype)
        train(tmp_path, Tuner(), SavePretrainedHook(str(folder), dtype=dtype))
        assert {value.dtype for value in load_file(folder / 'model.safetensors').values()} == {expected}
    with pytest.raises(ValueError, match="dtype='int8'"):
        SavePretrainedHook(dtype='int8')
    with pytest.raises(ValueError, match='interval=0'):
        SavePretrainedHook(interval=0)
