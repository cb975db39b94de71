"""Asks a vision-language model in the terminal, with or without images and in several turns. Answers are streamed."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from mergemix_mm.datasets import SphinxProcessor
from mergemix_mm.datasets.collate import ConversationCollate
from mergemix_mm.datasets.transforms import EncodeConversation
from mergemix_mm.engine import launch
from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.models.allowed_parts import check_adapter
from mergemix_mm.models.vlms import HFVisionLanguageModel, SphinxModel
from mergemix_mm.models.vlms.adapting import load_adapters
from mergemix_mm.models.vlms.family_model import FamilyModel
from mergemix_mm.models.vlms.sphinx.files import LANGUAGE_MODEL, is_sphinx
from mergemix_mm.utils.images import read_image
from mergemix_mm.utils.text import RecordError, one_line, printable, shown

ADAPTER_FILE = 'adapter_config.json'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Questions come from --question, or line by line until 'exit' or the end of input."
    )
    parser.add_argument(
        'model', help='name on the hub, or a folder that SavePretrainedHook wrote: a model, or the adapters of LoRA'
    )
    parser.add_argument('images', nargs='*', type=Path, metavar='image', help='files that the first question is about')
    parser.add_argument('-q', '--question', help='the only question; without it, questions are read line by line')
    parser.add_argument('--lora', metavar='ADAPTER', help='folder of adapters to add to MODEL')
    parser.add_argument('--max-new-tokens', type=int, default=512, help='longest answer (default: %(default)s)')
    launch.add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.max_new_tokens < 1:
        parser.error(f'--max-new-tokens {args.max_new_tokens} must be at least 1')
    return args


def open_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read the images in RGB, as a viewer shows them.

    Raises:
        SystemExit: If one is missing or cannot be decoded.
    """
    for path in paths:
        if not path.exists():
            raise LaunchError(f'IMAGE: there is no file {shown(path, 200)} (from {Path.cwd()})')
    try:
        return [read_image(path) for path in paths]
    except ValueError as error:
        raise LaunchError(f'IMAGE: {error}') from error


def resolve(model: str, lora: str | None) -> tuple[str, str | None]:
    """The model and the folder of its adapters. If MODEL itself holds adapters, they name their model.

    Raises:
        SystemExit: If the folder of adapters is missing, or does not name its model.
    """
    if lora is not None:
        if not Path(lora, ADAPTER_FILE).is_file():
            raise LaunchError(f'--lora: {lora} is not a folder with adapters, it has no {ADAPTER_FILE}')
        return model, lora
    if not Path(model, ADAPTER_FILE).is_file() or Path(model, 'config.json').is_file():
        return model, None
    from peft import PeftConfig

    try:
        base = PeftConfig.from_pretrained(model).base_model_name_or_path
    except Exception as error:  # A damaged file can raise any exception.
        raise LaunchError(f'MODEL: {Path(model, ADAPTER_FILE)} cannot be read: {one_line(error, 200)}') from None
    if not base:
        raise LaunchError(
            f'MODEL: the adapters in {model} do not say which model they belong to; name both: BASE --lora {model}'
        )
    return base, model


def load_processor(folders: Sequence[str], trust_remote_code: bool):
    """The processor of the first of these folders (or hub names) that has one.

    Raises:
        SystemExit: If none of them has one.
    """
    from transformers import AutoProcessor

    if is_sphinx(folders[0]):
        try:
            return SphinxProcessor.from_pretrained(folders[0])
        except (OSError, ValueError) as error:
            raise LaunchError(f'MODEL: {error}') from error
    reasons = []
    for folder in folders:
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, TypeError, KeyError) as error:
            reasons.append(str(error))
            continue
        # If there is no processor, transformers returns the tokenizer instead.
        if hasattr(processor, 'tokenizer'):
            return processor
        reasons.append(f'{folder} has only a {type(processor).__name__}')
    raise LaunchError(
        f'MODEL: no processor comes from {" or ".join(folders)}. SavePretrainedHook and save_pretrained.py write it '
        'beside the model if the config has model.processor; or take that of the model trained from: '
        f'AutoProcessor.from_pretrained(...).save_pretrained({folders[0]!r})\n' + '\n'.join(reasons)
    )


def load_model(base: str, adapters: str | None, dtype: str, device: str, trust_remote_code: bool) -> FamilyModel:
    """The model in evaluation mode, with its adapters added to the weights.

    Raises:
        SystemExit: If the model cannot be found, or its family is unknown.
    """
    try:
        if is_sphinx(base):
            language_model = dict(
                pretrained=str(Path(base, LANGUAGE_MODEL)), dtype=dtype, trust_remote_code=trust_remote_code
            )
            vlm = SphinxModel(language_model, pretrained=base, trust_remote_code=trust_remote_code)
        else:
            vlm = HFVisionLanguageModel(base, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise LaunchError(f'MODEL: {error}') from error
    if adapters is not None:
        try:
            if not trust_remote_code:
                check_adapter(adapters)
            # Merging replaces layers inside the model, which keeps its class and gets other weights.
            vlm.model = load_adapters(vlm.model, adapters).merge_and_unload()
        except Exception as error:  # A damaged file can raise any exception.
            raise LaunchError(f'MODEL: the adapters in {adapters} cannot be added: {one_line(error, 400)}') from error
    return vlm.to(device).eval()


def printable_streamer(tokenizer):
    """A streamer of transformers that prints control characters of an answer as text, so that they do not act."""
    from transformers import TextStreamer

    class PrintableStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text), stream_end)

    return PrintableStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


class Chat:
    """A conversation with a model, formatted as in training.

    Args:
        vlm (FamilyModel): The model.
        encode (EncodeConversation): Built with ``generate=True``.
        images (Sequence[Image]): The images of the first question. Defaults to none.
        max_new_tokens (int): The longest answer in tokens. Defaults to 512.
    """

    def __init__(
        self,
        vlm: FamilyModel,
        encode: EncodeConversation,
        images: Sequence[Image.Image] = (),
        max_new_tokens: int = 512,
    ) -> None:
        self.vlm, self.encode, self.images = vlm, encode, list(images)
        self.max_new_tokens = max_new_tokens
        self.messages = []

    def ask(self, question: str) -> str:
        """Write the answer to stdout while it is generated, and return it. Question and answer join the conversation.

        Raises:
            RecordError: If the question cannot be encoded, for example because it holds an image token.
        """
        images = [] if self.messages else [dict(type='image') for _ in self.images]
        messages = [*self.messages, dict(role='user', content=[*images, dict(type='text', text=question)])]
        sample = self.encode(dict(messages=messages, images=self.images, source='question'))
        device = next(self.vlm.parameters()).device
        batch = {key: value.to(device) for key, value in ConversationCollate()([sample])['inputs'].items()}
        tokenizer = self.encode.tokenizer
        streamer = printable_streamer(tokenizer)
        found = self.vlm.generate(batch, max_new_tokens=self.max_new_tokens, streamer=streamer)
        answer = tokenizer.decode(found.sequences[0], skip_special_tokens=True).strip()
        self.messages = [*messages, dict(role='assistant', content=[dict(type='text', text=answer)])]
        return answer


def encoding(processor, chat_template: str | None) -> EncodeConversation:
    """The transform that writes questions as in training.

    Raises:
        SystemExit: If processor or template cannot be used.
    """
    try:
        return EncodeConversation(processor, chat_template, generate=True)
    except ValueError as error:
        raise LaunchError(f'--chat-template: {error}') from error


def read_questions() -> Iterator[str]:
    """The lines of stdin that are not empty, until 'exit' or the end of input."""
    while True:
        if sys.stdin.isatty():
            print('> ', end='', file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == 'exit':
            return
        if line.strip():
            yield line.strip()


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model and answer the questions.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    images = open_images(args.images)
    base, adapters = resolve(args.model, args.lora)
    processor = load_processor([folder for folder in (adapters, base) if folder], args.trust_remote_code)
    encoding(processor, args.chat_template)  # Refuses what it cannot use before gigabytes of weights are read.
    device, dtype = launch.device_and_dtype(args.device, args.dtype)
    vlm = load_model(base, adapters, dtype, device, args.trust_remote_code)
    vlm.family.complete_processor(processor)
    chat = Chat(vlm, encoding(processor, args.chat_template), images, args.max_new_tokens)
    try:
        for question in read_questions() if args.question is None else [args.question]:
            try:
                chat.ask(question)
            except RecordError as error:
                print(f'This cannot be asked: {error}', file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)


if __name__ == '__main__':
    main()
