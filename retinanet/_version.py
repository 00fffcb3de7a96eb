"""The version, where every module can reach it."""

from __future__ import annotations

__version__ = "0.1.0"
