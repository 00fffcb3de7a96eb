"""The command `import`: a RetinaNet of another project as a file of ours."""

from __future__ import annotations

import logging
from pathlib import Path

from ..config.commands import ImportConfig
from ..errors import ConfigError
from ..weights.checkpoint import save_model
from ..weights.foreign.convert import import_weights

log = logging.getLogger("retinanet")


def run(foreign: str | Path, config: ImportConfig) -> Path:
    """Convert another project's file and write it as ours; returns where."""
    path = Path(foreign)
    out = config.out or path.with_suffix(".safetensors")
    if out.exists():
        raise ConfigError(f"{out} exists, and nothing is overwritten; choose another --out")
    names = None
    if config.names is not None:
        names = [
            line.strip() for line in config.names.read_text(encoding="utf-8-sig").splitlines() if line.strip()
        ]
    weights, card = import_weights(path, names, config.bn_eps, config.style)
    save_model(out, weights, card)
    about = f"{card.model.network.backbone}, {len(card.names)} classes ({', '.join(card.names[:3])} ...)"
    log.info("%s: %s's RetinaNet, %s: %s", path, card.about["project"], about, out)
    return out
