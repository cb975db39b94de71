"""Processes that end with the one that started them, also when that one is killed."""

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
# The process that forks, if it forks from its main thread: the kernel sends the signal when the *thread* ends.
_parent: int | None = None
_installed = False


def end_with_parent(parent: int | None = None) -> None:
    """Make the kernel kill this process when its parent ends, for whatever reason.

    Only Linux supports this; elsewhere the call does nothing. It can be the ``initializer`` of a pool.

    Args:
        parent (int, optional): The process id of the parent, to end at once if it no longer runs. Defaults to None.
    """
    if not sys.platform.startswith('linux'):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have ended before the call above: no signal would come any more.
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def end_children_with_parent() -> None:
    """Make all processes that this one forks from its main thread end with it: workers of data loaders and pools.

    Workers of torch check every five seconds whether their parent lives, but not while they read or send a sample: a
    worker that waits for a disk or a lock outlives a killed training, and keeps its memory.
    """
    global _installed
    if _installed or not hasattr(os, 'register_at_fork'):
        return
    _installed = True
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _before_fork() -> None:
    global _parent
    _parent = os.getpid() if threading.current_thread() is threading.main_thread() else None


def _after_fork() -> None:
    if _parent is not None:
        end_with_parent(_parent)
