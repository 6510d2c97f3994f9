"""Steps on several blocks at once, in the threads that BLAS leaves idle: products of sparse rows run in one of them.

Every block's step is the same whoever runs it, and results come in the order of the calls, so no figure changes.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np
from joblib import cpu_count
from threadpoolctl import ThreadpoolController


def available() -> int:
    """As many threads as BLAS would use now, and no more than the CPUs that this process may use."""
    return min([cpu_count(), *(library.num_threads for library in _blas())])


@functools.cache
def _blas() -> list[Any]:
    """The BLAS libraries loaded so far, numpy's among them; looking for them takes as long as a small table's pass."""
    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return found


def at_once(work: Callable[..., Any], calls: Iterable[tuple[Any, ...]], threads: int) -> Iterator[Any]:
    """Yield ``work(*call)`` of every call, in order, several of them worked on at once.

    The caller's thread takes its turn: it would only wake up to wait again, each time for the interpreter's lock. Calls
    are taken from their iterator there, no more than one a thread, and one, beyond what is asked for. Nothing goes on
    once there was an exception, or nobody asks any more.

    Parameters
    ----------
    work : callable
        run as in the caller's own context, numpy's handling of floating-point errors included.
    calls : iterable of tuple
        arguments.
    threads : int
        two at least.
    """
    helpers = ThreadPoolExecutor(threads - 1, thread_name_prefix="rows")
    ahead: deque[Future[Any]] = deque()
    own: tuple[Future[Any], tuple[Any, ...]] | None = None
    try:
        for number, call in enumerate(calls):
            if number % threads == 1:  # waits until the helpers have something to do meanwhile
                own = Future(), call
                ahead.append(own[0])
                continue
            ahead.append(helpers.submit(copy_context().run, _as_there, np.geterr(), work, call))
            if own is not None and len(ahead) > threads:
                _finish(*own, work)
                own = None
            while len(ahead) > threads:
                yield ahead.popleft().result()
        if own is not None:
            _finish(*own, work)
        while ahead:
            yield ahead.popleft().result()
    finally:
        helpers.shutdown(cancel_futures=True)


def _finish(future: Future[Any], call: tuple[Any, ...], work: Callable[..., Any]) -> None:
    """Work in this thread; what goes wrong is told when it is that call's turn."""
    try:
        future.set_result(work(*call))
    except Exception as error:
        future.set_exception(error)


def _as_there(errors: Any, work: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    with np.errstate(**errors):  # numpy 1 keeps them by thread
        return work(*call)
