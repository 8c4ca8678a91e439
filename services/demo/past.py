"""Which run of the demo this is in its home: people who installed the app once do not install it again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Past:
    """`run` is the number of demos before this one in the home; `known`: one of them had the same people."""

    run: int
    known: bool

    @classmethod
    def next(cls, file: Path, seed: int) -> Past:
        """Notes a run with this seed, and what was before it."""
        try:
            seeds = json.loads(file.read_text())["seeds"]
        except (OSError, ValueError, KeyError, TypeError):
            seeds = []
        file.write_text(json.dumps({"seeds": [*seeds, seed]}))
        return cls(len(seeds), seed in seeds)
