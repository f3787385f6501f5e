"""The bundled sample: what a payment provider sends on a bad day. `python -m idempo.demo.sample > callbacks.jsonl`.

500 payments: most are delivered several times, many twice in the same instant, late, out of order, with a new event id
or the same one; and some deliveries are forged: an amount that the payment never had, now and then even as the first.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from importlib.resources import files
from typing import BinaryIO, cast

__all__ = ["bundled", "lines"]

_SEED = 20_240_229
_PAYMENTS = 500
_FORGED = 0.08


def bundled() -> BinaryIO:
    """Open the sample that comes with the package."""
    return cast(BinaryIO, files("idempo.demo").joinpath("callbacks.jsonl").open("rb"))


def lines() -> Iterator[str]:
    """Make the sample, the same every time."""
    # Random numbers for made-up payments, not for secrets.
    rng = random.Random(_SEED)  # noqa: S311
    sent = sorted(delivery for payment in range(_PAYMENTS) for delivery in _deliveries(rng, payment))
    for event, (_, payment_no, amount, again) in enumerate(sent):
        event_id = f"evt-{event - again:06}"
        yield json.dumps({"payment_no": payment_no, "event_id": event_id, "amount": amount, "status": "paid"})


def _deliveries(rng: random.Random, payment: int) -> Iterator[tuple[float, str, str, int]]:
    """All deliveries of one payment: when, which payment, what amount, and 1 for the same event sent again."""
    payment_no = f"PAY-{2024_000_000 + rng.randrange(1000) * 1000 + payment}"
    cents = rng.choice(
        [rng.randrange(100, 5_000), rng.randrange(5_000, 90_000), rng.randrange(100, 900) * 100]
    )
    amount = f"{cents // 100}.{cents % 100:02}"
    first = payment + rng.uniform(0, 20)
    number = rng.choices(range(1, 10), weights=[8, 12, 16, 18, 16, 12, 9, 6, 3])[0]
    for delivery in range(number):
        at = (
            first
            if delivery == 0
            else first + rng.choice([0.001, 0.002, rng.uniform(0, 4), rng.expovariate(0.02)])
        )
        yield at, payment_no, amount, 0
        if rng.random() < 0.05:
            yield at + 1e-9, payment_no, amount, 1
    if rng.random() < _FORGED:
        wrong = f"{cents // 100 + rng.randrange(1, 500)}.{rng.randrange(100):02}"
        yield first + rng.uniform(-0.01, 5), payment_no, wrong, 0


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lines())
