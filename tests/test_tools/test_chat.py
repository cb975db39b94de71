"""Tests of tools/chat.py, called in this process on tiny models in folders."""

import io
import sys

import pytest
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.registry import MODELS
from PIL import Image

from mergemix_mm.models.vlms import HFVisionLanguageModel
from mergemix_mm.utils.text import printable


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """What SavePretrainedHook writes: a model and its processor."""
    folder = tmp_path_factory.mktemp('llava')
    torch.manual_seed(0)
    HFVisionLanguageModel(config=tiny_vlms.tiny_config('llava')).save_pretrained(folder)
    tiny_vlms.tiny_processor('llava').save_pretrained(folder)
    return folder


@pytest.fixture
def chat(load_tool):
    return load_tool('chat')


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    tiny_vlms.random_image(30, 40, seed=0).save(path)
    return path


@pytest.fixture
def answers(chat, monkeypatch):
    """The conversations that were asked, and the answers, as they come."""
    seen, ask = [], chat.Chat.ask

    def record(self, question):
        answer = ask(self, question)
        seen.append((self, question, answer))
        return answer

    monkeypatch.setattr(chat.Chat, 'ask', record)
    return seen


@pytest.fixture
def prompts(chat, monkeypatch):
    """The ids of the prompts that are encoded, and their tokenizer."""
    seen, encode = [], chat.EncodeConversation.transform

    def record(self, results):
        sample = encode(self, results)
        seen.append((sample['inputs']['input_ids'], self.tokenizer))
        return sample

    monkeypatch.setattr(chat.EncodeConversation, 'transform', record)
    return seen


def run(chat, *arguments):
    chat.main([*map(str, arguments), '--max-new-tokens', '6', '--device', 'cpu'])


def test_the_answer_is_streamed_and_is_the_models_own(chat, folder, image, answers, capsys):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run(chat, folder, image, '--question', 'What is it?')
    ((_, _, answer),) = answers
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    text = 'USER: <image>\nWhat is it? ASSISTANT:'
    inputs = processor(text=text, images=tiny_vlms.random_image(30, 40, seed=0), return_tensors='pt')
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs['input_ids'].size(1) :]
    assert answer == processor.decode(tokens, skip_special_tokens=True).strip() != ''
    assert printable(answer) in capsys.readouterr().out  # Random weights may say control characters.


def test_lines_are_questions_of_one_conversation_until_exit(chat, folder, image, answers, prompts, monkeypatch):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('First?\n\n  Second?\nexit\nThird?\n'))
    run(chat, folder, image)
    (_, first, answer), (_, second, _) = answers
    assert (first, second) == ('First?', 'Second?')
    prompt = f'<s>USER: {"<image>" * 16}\nFirst? ASSISTANT:'
    written = [tokenizer.decode(ids) for ids, tokenizer in prompts]
    assert written == [prompt, f'{prompt} {answer}</s>USER: Second? ASSISTANT:']


def test_text_alone_needs_no_image_and_other_images_give_other_answers(chat, folder, image, tmp_path, answers):
    other = tmp_path / 'other.png'
    tiny_vlms.random_image(30, 40, seed=1).save(other)
    for images in ([], [image], [other], [image, other]):
        run(chat, folder, *images, '-q', 'Q')
    assert len({answer for _, _, answer in answers}) == 4


def test_what_a_user_types_is_text(chat, folder, image, answers, prompts, monkeypatch):
    typed = 'What is <image>, <s>old</s> and <pad>?'
    monkeypatch.setattr(sys, 'stdin', io.StringIO(f'{typed}\nWhat?\n'))
    run(chat, folder, image)
    assert [question for _, question, _ in answers] == [typed, 'What?']
    (ids, tokenizer), _ = prompts
    assert tokenizer.decode(ids) == f'<s>USER: {"<image>" * 16}\n{typed} ASSISTANT:'
    # Only the begin of the sequence and the image are control tokens; the others are spelt.
    assert [token for token in ids.tolist() if token < len(tiny_vlms.LLAMA_TOKENS)] == [1, *[4] * 16]


def test_a_question_that_cannot_be_written_is_named_and_the_next_one_asked(
    chat, folder, image, answers, monkeypatch, capsys
):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('What is \udcff?\nWhat?\n'))
    run(chat, folder, image)
    assert [question for _, question, _ in answers] == ['What?']
    assert "This cannot be asked: question: a text holds '\\udcff'" in capsys.readouterr().err


def test_adapters_name_their_model_or_are_given_beside_it(chat, folder, tmp_path, answers):
    vlm = HFVisionLanguageModel(str(folder), lora=dict(r=2, init_lora_weights=False)).eval()
    vlm.save_pretrained(tmp_path / 'adapters')
    run(chat, tmp_path / 'adapters', '-q', 'Q')
    run(chat, folder, '--lora', tmp_path / 'adapters', '-q', 'Q')
    run(chat, folder, '-q', 'Q')
    (merged, _, adapted), (_, _, again), (_, _, plain) = answers
    assert adapted == again != plain
    ids = torch.arange(10, 20)[None]
    expected = vlm.hidden(dict(input_ids=ids))
    torch.testing.assert_close(merged.vlm.hidden(dict(input_ids=ids)), expected, rtol=1e-4, atol=1e-4)

    path = tmp_path / 'adapters' / 'adapter_config.json'
    path.write_text(path.read_text().replace(f'"{folder}"', 'null'))
    with pytest.raises(SystemExit, match='do not say which model they belong to; name both: BASE --lora'):
        run(chat, tmp_path / 'adapters', '-q', 'Q')
    with pytest.raises(SystemExit, match=f'--lora: {folder} is not a folder with adapters'):
        run(chat, folder, '--lora', folder, '-q', 'Q')


@pytest.mark.parametrize('family', ['paligemma', 'internvl', 'smolvlm', 'qwen2_5_vl'])
def test_other_families_answer_twice(chat, family, image, tmp_path, answers, monkeypatch):
    torch.manual_seed(0)
    HFVisionLanguageModel(config=tiny_vlms.tiny_config(family)).save_pretrained(tmp_path / family)
    tiny_vlms.tiny_processor(family).save_pretrained(tmp_path / family)
    monkeypatch.setattr(sys, 'stdin', io.StringIO('First?\nSecond?\n'))
    run(chat, tmp_path / family, image)
    assert [question for _, question, _ in answers] == ['First?', 'Second?']


def test_mistakes_are_named(chat, folder, image, tmp_path):
    with pytest.raises(SystemExit, match='IMAGE: there is no file .*missing.png'):
        run(chat, folder, tmp_path / 'missing.png')
    broken = tmp_path / 'broken.png'
    broken.write_bytes(image.read_bytes()[:60])
    with pytest.raises(SystemExit, match='IMAGE: .*broken.png cannot be read'):
        run(chat, folder, broken)
    HFVisionLanguageModel(config=tiny_vlms.tiny_config('llava')).save_pretrained(tmp_path / 'bare')
    with pytest.raises(SystemExit, match='MODEL: no processor comes from .*bare.*model.processor'):
        run(chat, tmp_path / 'bare')
    with pytest.raises(SystemExit, match="--chat-template: .*'none' is neither a file nor one of"):
        run(chat, folder, '--chat-template', 'none')


def test_a_folder_of_sphinx_answers_too(chat, image, answers, tmp_path):
    config = tiny_sphinx.sphinx_config(grid=2)
    vit = dict(arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16), img_size=28, patch_size=14)
    vit.update(type='mmpretrain.VisionTransformer', out_type='raw')
    config['backbone']['encoders'] = [dict(encoder=vit, frozen=False)]
    torch.manual_seed(0)
    vlm, processor = MODELS.build(config).eval(), tiny_sphinx.processor(grid=2)
    vlm.save_pretrained(tmp_path / 'model')
    processor.save_pretrained(tmp_path / 'model')
    run(chat, tmp_path / 'model', image, '--question', 'What is it?')
    ((_, _, answer),) = answers
    batch = tiny_sphinx.batch(
        processor, [([tiny_vlms.random_image(30, 40, seed=0)], 'What is it?', '-')], generate=True
    )
    found = vlm.generate(batch['inputs'], max_new_tokens=6)
    assert answer == processor.decode(found.sequences[0], skip_special_tokens=True).strip() != ''


def test_an_answer_that_would_steer_the_terminal_is_shown(chat, capsys):
    streamer = chat.printable_streamer(tiny_vlms.tiny_processor('llava').tokenizer)
    streamer.on_finalized_text('\x1b]0;owned\x07 a\rb\n\tc', stream_end=True)
    assert capsys.readouterr().out == '\\x1b]0;owned\\x07 a\\rb\n\tc\n'


def test_a_file_name_that_would_steer_the_terminal_is_shown(chat, tmp_path):
    path = tmp_path / 'a\x1b[2J\u202egnp.txt'
    path.write_text('no image')
    with pytest.raises(SystemExit) as caught:
        run(chat, tmp_path, path, '--question', 'What?')
    assert 'a\\x1b[2J\\u202egnp.txt' in str(caught.value) and '\x1b' not in str(caught.value)


def test_images_are_read_as_a_viewer_shows_them_or_named(chat, tmp_path):
    Image.new('LA', (3, 2), (0, 0)).save(tmp_path / 'clear.png')
    (clear,) = chat.open_images([tmp_path / 'clear.png'])
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(SystemExit, match=f'^IMAGE: image {tmp_path}'):
        chat.open_images([tmp_path])


@pytest.mark.parametrize(
    'content', ['{', '[]', '{"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "evil"}']
)
def test_adapters_that_cannot_be_used_are_one_line(chat, folder, tmp_path, content):
    (tmp_path / 'adapter_config.json').write_text(content)
    with pytest.raises(SystemExit, match='MODEL: ') as caught:
        run(chat, folder, '--lora', tmp_path, '--question', 'What?')
    assert '\n' not in str(caught.value) and str(tmp_path) in str(caught.value)
