"""tools/evaluate.py with the benchmarks of SPHINX: a tiny SPHINX and a few records of each, one table."""

import json

import pytest
import small_data
import tiny_sphinx
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mergemix_mm.datasets import ConversationCollate, EncodeConversation, SphinxProcessor, TaskRecordDataset
from mergemix_mm.engine.launch import LaunchError, use_own_weights

BENCHMARKS = ('refcoco', 'refcoco+', 'refcocog', 'coco-detection', 'text-loss', 'pope')
# Two expressions of the split; two classes on two images; two texts; two questions of three kinds.
SAMPLES = (2, 2, 2, 4, 2, 6)
CONFIG = f"""
custom_imports = dict(imports=['mergemix_mm'])
processor = dict(type='SphinxProcessor', tokenizer='language_model', view_tokens=5, image_size=28)
encode = dict(type='EncodeConversation', processor=processor, max_length=8)
encoder = dict(
    type='transformers.CLIPVisionModel.from_pretrained', pretrained_model_name_or_path='clip', dtype='float32'
)
model = dict(
    type='VLMTuner',
    vlm=dict(
        type='SphinxModel',
        language_model=dict(pretrained='language_model'),
        backbone=dict(type='MultiBackbone', encoders=[dict(encoder=encoder, input_size=28)]),
        neck=dict(type='EmbeddingMixNeck', in_channels=[8], out_channels={tiny_sphinx.WIDTH}, grid=2, class_token=True),
        image_token_id={tiny_sphinx.VOCAB_SIZE},
    ),
    processor=processor,
    generation=dict(max_new_tokens=2),
)
# It was trained in shards.
runner_type, strategy = 'FlexibleRunner', dict(type='FSDP2Strategy')
"""
# A box that overlaps more than half of those that are asked for.
ANSWER = '[0.062,0.200,0.562,0.575]'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of the command: model, checkpoint and data."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    MODELS.build(tiny_sphinx.sphinx_config()).model.language_model.save_pretrained('language_model')
    tiny_sphinx.tokenizer().save_pretrained('language_model')
    tiny_sphinx.clip(28, 14).save_pretrained('clip')
    (tmp_path / 'model.py').write_text(CONFIG)
    coco = tmp_path / 'data/coco'
    small_data.write_refcoco(coco)
    small_data.write_coco2017(coco, 'val')
    small_data.write_pope(coco)
    small_data.write_texts(tmp_path / 'data/refinedweb', 2)
    return tmp_path


def test_every_benchmark_reads_its_data_and_scores(home, run_tool, monkeypatch, capsys):
    torch.manual_seed(0)
    tuner = MODELS.build(Config.fromfile('model.py').model).eval()
    torch.save(dict(state_dict=tuner.state_dict()), 'weights.pth')
    monkeypatch.setattr(SphinxProcessor, 'batch_decode', lambda self, rows, **_: [ANSWER] * len(rows))
    workers = [f'test_dataloader.{name}.num_workers=0' for name in BENCHMARKS]
    run_tool('evaluate', 'model.py', 'weights.pth', *BENCHMARKS, '--output', 'out.json', '--cfg-options', *workers)

    found = json.loads((home / 'out.json').read_text())['benchmarks']
    assert {name: one['samples'] for name, one in found.items()} == dict(zip(BENCHMARKS, SAMPLES, strict=True))
    metrics = {name: one['metrics'] for name, one in found.items()}
    for name in BENCHMARKS[:3]:
        assert (metrics[name]['box/accuracy'], metrics[name]['box/malformed']) == (100, 0)
    assert metrics['refcocog']['box/test/accuracy'] == metrics['refcoco']['box/testA/accuracy'] == 100
    assert metrics['coco-detection']['detection/malformed'] == 0
    assert 0 < metrics['coco-detection']['detection/mAP'] < metrics['coco-detection']['detection/mAP_50']
    assert metrics['coco-detection']['detection/mAP_50'] == pytest.approx(100)
    # No answer says no.
    assert metrics['pope']['pope/yes_rate'] == 100 and metrics['pope']['pope/accuracy'] == 50

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    named = [row[0] for row in rows if len(row) == 4 and row[0] in BENCHMARKS]
    assert list(dict.fromkeys(named)) == list(BENCHMARKS)


def test_texts_are_scored_as_they_are(home, run_tool):
    """Nothing is generated, and there are no turns of a chat around them."""
    options = ['--cfg-options', 'test_dataloader.text-loss.num_workers=0']
    run_tool('evaluate', 'model.py', 'none', 'text-loss', '--output', 'out.json', *options)
    found = json.loads((home / 'out.json').read_text())['benchmarks']['text-loss']['metrics']

    tuner = MODELS.build(Config.fromfile('model.py').model).eval()
    encode = EncodeConversation(tuner.processor, chat_template='plain')
    texts = TaskRecordDataset(
        'val.jsonl', data_root='data/refinedweb', pipeline=[dict(type='LanguageModellingTask'), encode]
    )
    inputs = ConversationCollate()([texts[0], texts[1]])['inputs']
    # A byte is a token, and a line break ends each text.
    assert (inputs['labels'] != -100).sum() == sum(len(one['data_samples'].gt_answer) + 1 for one in texts)
    assert found['answer/loss'] == pytest.approx(tuner.loss(inputs)['loss_sft'].item(), rel=1e-5)


def test_weights_of_the_language_model_are_some_and_none_are_refused():
    vlm = dict(type='SphinxModel', language_model=dict(pretrained='there'))
    cfg = Config(dict(model=dict(vlm=vlm), load_from='none'))
    use_own_weights(cfg)
    assert cfg.load_from is None
    vlm['language_model'] = dict(config=dict(model_type='llama'))
    with pytest.raises(LaunchError, match=r"'none' is for models that come with weights"):
        use_own_weights(Config(dict(model=dict(vlm=vlm))))
