import os

import pytest
import tiny_vlms
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mergemix_mm.models import HFVisionLanguageModel


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('model_converters/save_pretrained')


@pytest.fixture
def config(tmp_path):
    """A config file of a tuner, whose weights are drawn anew at every building."""
    vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config('llava'))
    model = dict(type='VLMTuner', vlm=vlm, processor=dict(type='ShapesProcessor'))
    path = tmp_path / 'config.py'
    Config(dict(model=model)).dump(str(path))
    return path


def train(config, folder):
    """A checkpoint as a run leaves it behind: with optimizer state and logged values."""
    runner = Runner(
        model=MODELS.build(Config.fromfile(config).model),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=[dict(input_ids=torch.arange(10, 15), labels=torch.arange(10, 15))] * 2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
            collate_fn=lambda samples: dict(inputs={key: value[None] for key, value in samples[0].items()}),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='StepSeedHook')],
        experiment_name=f'convert-{os.urandom(4).hex()}',
        randomness=dict(seed=0),
    )
    runner.train()
    return runner.model.vlm, folder / 'epoch_1.pth'


def logits_of(model, **kwargs):
    return model(input_ids=torch.arange(10, 20)[None], **kwargs).logits


def test_a_runs_checkpoint_becomes_a_folder_for_plain_transformers(tool, config, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    vlm, checkpoint = train(config, tmp_path / 'work')
    tool.main([str(config), str(checkpoint), str(tmp_path / 'out')])
    assert None not in HistoryBuffer._statistics_methods.values()  # Shared by all loggers of the process.
    assert HistoryBuffer([1.0], [1]).statistics('mean', 1) == 1.0
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / 'out').eval()
    assert torch.equal(logits_of(model), logits_of(vlm.model.eval()))
    assert AutoProcessor.from_pretrained(tmp_path / 'out').tokenizer.eos_token == '</s>'


@pytest.mark.parametrize('merge', [False, True])
def test_adapters_are_written_alone_or_merged(tool, config, tmp_path, merge):
    from transformers import AutoModelForImageTextToText

    options = dict(r=2, init_lora_weights=False)
    cfg = Config.fromfile(config)
    cfg.model.vlm.lora = options
    cfg.dump(str(config))
    tuner = MODELS.build(cfg.model).eval()
    torch.save(dict(state_dict=tuner.state_dict()), tmp_path / 'lora.pth')
    tool.main([str(config), str(tmp_path / 'lora.pth'), str(tmp_path / 'out'), *['--merge-lora'] * merge])
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert ('adapter_model.safetensors' in names, 'model.safetensors' in names) == (not merge, merge)
    if merge:
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / 'out').eval()
        assert torch.allclose(logits_of(model), logits_of(tuner.vlm.family.model), atol=1e-5)


def test_trained_weights_are_rounded_to_the_dtype_of_the_vlm_or_kept_on_demand(tool, config, tmp_path):
    from safetensors.torch import load_file

    cfg = Config.fromfile(config)
    cfg.model.vlm.update(dtype='bfloat16', trainable=['projector'])
    cfg.dump(str(config))
    tuner = MODELS.build(cfg.model)
    trained = tuner.vlm.model.model.multi_modal_projector.linear_1.weight
    trained.data += 1e-4  # Below the precision of bfloat16.
    torch.save(tuner.state_dict(), tmp_path / 'stage1.pth')
    for options, dtype in (([], torch.bfloat16), (['--dtype', 'float32'], torch.float32)):
        tool.main([str(config), str(tmp_path / 'stage1.pth'), str(tmp_path / 'out'), *options])
        saved = load_file(tmp_path / 'out' / 'model.safetensors')
        name = next(name for name in saved if name.endswith('multi_modal_projector.linear_1.weight'))
        assert torch.equal(saved[name], trained.to(dtype))
        assert {weight.dtype for weight in saved.values()} == {dtype}
    assert not torch.equal(trained.bfloat16().float(), trained)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ('ran',)


@pytest.mark.parametrize(
    'content, message',
    [
        (dict(state_dict={}, extra=Dangerous()), 'holds more than weights'),
        (dict(state_dict={'backbone.weight': torch.ones(1)}), r"no weights of a vlm .*'backbone.weight'"),
        (dict(state_dict={'vlm.model.other': torch.ones(1)}), 'not of the model of this config'),
        (None, 'is neither a file nor a folder of FSDP2Strategy'),
    ],
)
def test_other_files_are_refused(tool, config, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'file.pth'
    if content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit, match=message):
        tool.main([str(config), str(path), str(tmp_path / 'out')])
    assert not (tmp_path / 'ran').exists() and not (tmp_path / 'out').exists()


def test_a_folder_of_other_files_is_not_replaced(tool, config, tmp_path):
    with pytest.raises(SystemExit, match=r'OUT: .* holds other files than a model \(config\.py'):
        tool.main([str(config), str(tmp_path / 'any.pth'), str(tmp_path)])
    assert config.is_file()


def test_merging_adapters_that_are_not_there_is_refused(tool, config, tmp_path):
    tuner = MODELS.build(Config.fromfile(config).model)
    torch.save(tuner.state_dict(), tmp_path / 'plain.pth')
    with pytest.raises(SystemExit, match='the config has no model.vlm.lora'):
        tool.main([str(config), str(tmp_path / 'plain.pth'), str(tmp_path / 'out'), '--merge-lora'])


def test_adapters_of_a_quantized_model_are_added_to_the_original_weights(tool, tmp_path):
    pytest.importorskip('bitsandbytes')
    HFVisionLanguageModel(config=tiny_vlms.tiny_config('llava')).save_pretrained(tmp_path / 'original')
    vlm = dict(type='HFVisionLanguageModel', pretrained=str(tmp_path / 'original'), lora=dict(r=2))
    vlm['quantization_config'] = dict(load_in_4bit=True)
    config = Config(dict(model=dict(type='VLMTuner', vlm=vlm)))
    config.dump(str(tmp_path / 'config.py'))
    torch.save(MODELS.build(config.model).state_dict(), tmp_path / 'qlora.pth')
    command = [str(tmp_path / 'config.py'), str(tmp_path / 'qlora.pth'), str(tmp_path / 'out'), '--merge-lora']
    with pytest.raises(SystemExit, match='the weights are quantized; add the adapters to the original ones'):
        tool.main(command)
    tool.main([*command, '--cfg-options', 'model.vlm.quantization_config=None'])
    # The second factor of new adapters is zero, so that the original weights come out.
    found, expected = (HFVisionLanguageModel(str(tmp_path / name)).state_dict() for name in ('out', 'original'))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
