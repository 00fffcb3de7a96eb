"""Functions through torch.compile where that works. Where it does not, one line in the log says so and the
plain path does the work.

Compiling costs seconds and may fail, so whoever comes here has a plain path too, and takes it where little is
to be done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import FunctionType

import torch
from torch import Tensor

log = logging.getLogger("retinanet")

COMPILER = {"works": True}
"""False from the first failure on: without a compiler every trial would cost seconds and fail again."""

Function = Callable[..., Tensor]


def attempt(function: Function, name: str, rows: tuple[Tensor, ...], *others: Tensor | None) -> Tensor | None:
    """function(*rows, *others), compiled; None where compiling fails, has failed in this process, or is under
    way already.

    function  takes and returns tensors, and is the same object from call to call: a new one would be compiled
              anew
    name      what the log calls it; of several made by one `def`, each has its own
    rows      [N, ...] each, N may vary from call to call without a further compilation, other dimensions
              rarely should; None below 2

    After None, what the function may have written to its arguments is not to be relied on.
    """
    if (
        not COMPILER["works"] or torch.compiler.is_compiling() or min(map(len, rows)) < 2
    ):  # 0 and 1 would be graphs of their own
        return None
    try:
        rows = tuple(tensor.detach() for tensor in rows)  # the marks are left on these, not on the caller's
        for tensor in rows:
            torch._dynamo.mark_dynamic(tensor, 0)
        return _compiled(function, name)(*rows, *others)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a missing, old or switched off compiler makes of it
        COMPILER["works"] = False
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        log.info("%s: not compiled, since %s: %s", name, type(error).__name__, reason)
        return None


@cache
def _compiled(function: Function, name: str) -> Function:
    """Through torch.compile, which counts graphs, and learns which numbers vary, by code object: so each
    function has one of its own.
    """

    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=name)
    alone = FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    fast: Function = torch.compile(alone, fullgraph=True)
    return fast
