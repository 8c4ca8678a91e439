"""`perennial bench quick`: every measurement in turn, or those that were named."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from services.bench import dispatch, end_to_end, gateway, ingest, segmenter
from services.bench.figures import Figure
from services.bench.plan import Plan
from services.bench.site import Servers, servers
from services.local.children import Say
from services.local.program import LocalError

Measure = Callable[[Servers, Plan], Awaitable[list[Figure]]]
MEASURES: dict[str, Measure] = {
    "gateway": gateway.measure,
    "ingest": ingest.measure,
    "segmenter": segmenter.measure,
    "end-to-end": end_to_end.measure,
    "dispatch": dispatch.measure,
}


async def quick(only: Sequence[str], kafka: str, plan: Plan, port: int, say: Say) -> list[Figure]:
    """The figures, in a home of their own that is gone afterwards."""
    if unknown := [name for name in only if name not in MEASURES]:
        raise LocalError(f"there is no measurement {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    # short: a Unix socket's path must fit
    home = Path(tempfile.mkdtemp(prefix="perennial-bench-"))
    try:
        async with servers(home, port, kafka, say) as shared:
            return await measured(shared, only, plan, say)
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def measured(shared: Servers, only: Sequence[str], plan: Plan, say: Say) -> list[Figure]:
    figures: list[Figure] = []
    for name, measure in MEASURES.items():
        if not only or name in only:
            say(f"measuring: {name}")
            figures += await measure(shared, plan)
    return figures
