"""The command `export`: a model as a file for another runtime."""

from __future__ import annotations

import logging

from ..config.commands import ExportConfig
from ..device import explain_lost_loaders
from ..errors import ConfigError
from ..export.write import FORMATS, check_export, write_and_compare
from ..inference.load import load_checkpoint, resolve_weights
from ..inference.runtimes import SUFFIXES

log = logging.getLogger("retinanet")


@explain_lost_loaders()
def run(model: str, config: ExportConfig) -> bool:
    """Write the file and compare it with its source; true when it passes and is kept."""
    path = resolve_weights(model)
    if path.suffix in SUFFIXES:
        raise ConfigError(f"{path} was exported itself; give the model that it was made of")
    out = config.out or path.with_suffix(FORMATS[config.format][0])
    check_export(config, out)
    reasons = write_and_compare(*load_checkpoint(path), out, config, path)
    if reasons:
        log.error("%s is not written, since it differs from its source:\n  %s", out, "\n  ".join(reasons))
    return not reasons
