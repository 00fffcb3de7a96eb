"""A data set as handles of shared memory: what a worker is given that is started afresh, not forked, so that
it holds no copy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset


@dataclass(frozen=True)
class Shared:
    """A data set whose columns lie in shared memory: as tensors, which torch hands to a new process without
    copying them.
    """

    columns: dict[str, tuple[Tensor, str]]
    """Of each column its bytes, one axis more than it has, and NumPy's name of what they are."""
    rest: dict[str, Any]

    def opened(self) -> Dataset:
        """The data set again, in the same memory."""
        columns = {name: one.numpy().view(kind)[..., 0] for name, (one, kind) in self.columns.items()}
        return Dataset(**self.rest | columns)


def share(data: Dataset) -> Shared:
    """Copies the columns once, for any number of processes. The problems stay behind: they were told."""
    parts = {field.name: getattr(data, field.name) for field in fields(data) if field.name != "problems"}
    columns = {name: part for name, part in parts.items() if isinstance(part, np.ndarray)}
    return Shared(
        {
            name: (torch.from_numpy(np.array(one)[..., None].view(np.uint8)).share_memory_(), one.dtype.str)
            for name, one in columns.items()
        },
        {name: part for name, part in parts.items() if name not in columns},
    )
