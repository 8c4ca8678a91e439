"""`perennial up` with stand-ins for the services, as a process of its own. `local_up.py HOME PORT [KAFKA]`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from services.local import interrupt
from services.local.program import LocalError
from services.local.up import SERVICES, Options, running

DUMMY = Path(__file__).with_name("dummy_service.py")


async def main(home: str, port: str, kafka: str = "embedded") -> None:
    commands = {name: [sys.executable, str(DUMMY), name] for name in SERVICES}
    options = Options(Path(home), int(port), kafka=kafka, packs=("weather",), sandbox=True, shards=4, commands=commands)
    async with running(options, lambda text: print(text, flush=True)):
        print("READY", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        interrupt.run(main(*sys.argv[1:]))
    except interrupt.Interrupted:
        print("interrupted")
    except LocalError as error:
        sys.exit(f"refused: {error}")
