"""Renders chat templates of unknown origin in another process, on which the system puts limits."""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import jinja_worker

# Of the clock, for systems without a limit of computing time. It is far above that limit, as a busy machine is slow.
MAX_SECONDS = 60


class RenderingLimitError(Exception):
    """A template needed more time, memory or text than any real one; the message says which."""


class RenderingError(Exception):
    """A template refused a conversation; the message is the template's."""


class _Worker:
    """The other process. It is started when it is first needed, and again after a limit has ended it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.channel: socket.socket | None = None

    def ask(self, request: dict) -> dict:
        channel = self.channel or self._start()
        try:
            channel.sendall(json.dumps(request, default=str).encode('ascii') + b'\n')
            line = _line(channel)
        except TimeoutError:
            self.stop()
            raise RenderingLimitError(f'takes more than {MAX_SECONDS} s') from None
        except OSError:
            line = b''
        if line:
            return json.loads(line)
        code = self.stop(kill=False)
        seconds = jinja_worker.MAX_CPU_SECONDS
        stopped = code in (-24, -9)  # SIGXCPU, and SIGKILL for the hard limit.
        raise RenderingLimitError(f'computes for more than {seconds} s' if stopped else f'ends its process ({code})')

    def _start(self) -> socket.socket:
        import jinja2

        channel, other = socket.socketpair()
        channel.settimeout(MAX_SECONDS)
        with other:
            self.process = subprocess.Popen(
                # Isolated (-I): neither the current folder nor the environment decides what it imports.
                [sys.executable, '-I', jinja_worker.__file__, str(Path(jinja2.__file__).parents[1])],
                stdin=other.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.channel = channel
        return channel

    def stop(self, kill: bool = True) -> int | None:
        """Close the socket, which ends the process, and return its exit status."""
        process, channel, self.process, self.channel = self.process, self.channel, None, None
        if process is None or channel is None:
            return None
        channel.close()
        if kill:
            process.kill()
        return process.wait()

    def forget(self) -> None:
        """Let go of the worker in a forked process, as it belongs to the parent."""
        if self.process is not None and self.channel is not None:
            self.channel.close()
            self.process.returncode = 0  # Not a child of this process: there is nothing to wait for.
        self.process = self.channel = None


def _line(channel: socket.socket) -> bytes:
    # A message is one line of JSON, which may come in pieces.
    found = bytearray()
    while not found.endswith(b'\n'):
        piece = channel.recv(1 << 16)
        if not piece:
            return b''
        found += piece
    return bytes(found)


_worker, _lock = _Worker(), threading.Lock()
atexit.register(lambda: _worker.stop())


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _worker.forget()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


def render(
    template: str, messages: Sequence[dict], marks: Sequence[str], context: Mapping[str, Any], trusted: bool
) -> tuple[str, bool]:
    """Write a conversation down, with marks; see :func:`jinja_worker.render`.

    Args:
        template (str): The template.
        messages (Sequence[dict]): In transformers' format.
        marks (str): Four characters that occur neither in the template nor in the messages.
        context (Mapping): Further variables.
        trusted (bool): Whether the template is one of this package; then it is rendered in this process.

    Returns:
        tuple: The text, and whether the template would write another text without the marks around what turns say.

    Raises:
        RenderingLimitError: If the template takes too much.
        RenderingError: If it refuses the conversation.
    """
    request = dict(template=template, messages=list(messages), marks=marks, context=dict(context))
    if trusted:
        try:
            return jinja_worker.render(template, messages, marks, context), False
        except jinja_worker.TooLongError:
            raise RenderingLimitError(f'writes more than {jinja_worker.MAX_CHARACTERS} characters') from None
        except Exception as error:  # A template computes with what a record holds and can raise any error.
            raise RenderingError(f'{error}') from error
    with _lock:
        found = _worker.ask(request)
    if 'limit' in found:
        raise RenderingLimitError(found['limit'])
    if 'error' in found:
        raise RenderingError(found['error'])
    return found['text'], found['differs']
