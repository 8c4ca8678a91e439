"""One of the official Python SDKs, used as an app uses it: `python_client.py segment|rudder`.

Told by the environment, as every program here: HOST, WRITE_KEY, PREFIX of the user ids, USERS, EVENTS of each user, SECONDS
to spread them over. It ends when everything was delivered; the last line of its output is how many were not.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

CITY = "Dallas, TX"
MANY = 100_000
failed = 0


def note(error: object, batch: list[object]) -> None:
    global failed  # noqa: PLW0603 - the SDK calls from a thread of its own
    failed += len(batch)
    print("failed:", error, file=sys.stderr)


def client(kind: str) -> Any:
    key, host = os.environ["WRITE_KEY"], os.environ["HOST"]
    if kind == "segment":
        from segment import analytics
    else:
        from rudderstack import analytics
    return analytics.Client(key, host=host, gzip=True, max_retries=20, max_queue_size=MANY, on_error=note)


def main(kind: str) -> None:
    logging.getLogger("backoff").setLevel(logging.CRITICAL)
    prefix, users, events = os.environ["PREFIX"], int(os.environ["USERS"]), int(os.environ["EVENTS"])
    pause = float(os.environ["SECONDS"]) / events
    sdk = client(kind)
    for n in range(users):
        user = f"{prefix}{n}"
        sdk.identify(user, {"plan": "free"})
        sdk.group(user, "g-1", {"name": "one"})
        sdk.alias(f"{user}-before", user)
        sdk.page(user, "Docs", "Start")
        sdk.screen(user, "Home", "Start")
    for _ in range(events):
        for n in range(users):
            sdk.track(f"{prefix}{n}", "City Searched", {"city": CITY})
        time.sleep(pause)
    sdk.flush()
    sdk.join()
    print(failed)


if __name__ == "__main__":
    main(sys.argv[1])
