"""How long others go on repeating themselves, and whether the retention lasts as long.

The table has only what a page of the sender, or a page that quotes it, was read to say in November 2026. Senders
change their minds: when in doubt, ask theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from idempo.doctor.findings import Finding, danger, ok, warning
from idempo.errors import ConfigurationError

__all__ = ["SCHEDULES", "Schedule", "as_text", "retention", "seconds_of"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_HOUR, _DAY = _UNITS["h"], _UNITS["d"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """For how long somebody repeats what was not acknowledged."""

    name: str
    """What it is called on the command line."""
    who: str
    lasts: int
    """Seconds from the first delivery to the last one."""
    source: str
    """The title of the page that says so."""


SCHEDULES = (
    Schedule(
        "stripe",
        "Stripe webhooks, live mode",
        3 * _DAY,
        "Stripe Webhooks: Retries, Ordering, Duplicates, Timeouts, and IPs (quotes Stripe's documentation, Webhooks)",
    ),
    Schedule("adyen", "Adyen webhooks", 30 * _DAY, "Adyen, Troubleshoot webhooks: Retry queue"),
    Schedule(
        "shopify", "Shopify webhooks", 4 * _HOUR, "Shopify changelog, Updates to webhook retry mechanism"
    ),
    Schedule("nmi", "NMI webhooks", 3 * _DAY, "NMI, Retry Logic"),
    Schedule(
        "sns-http", "Amazon SNS to HTTP/S", _HOUR, "Amazon SNS message delivery retries (3,600 seconds)"
    ),
    Schedule("sns", "Amazon SNS to SQS and Lambda", 23 * _DAY, "Amazon SNS message delivery retries"),
    Schedule("eventbridge", "Amazon EventBridge", _DAY, "How EventBridge retries delivering events"),
    Schedule("sqs", "Amazon SQS, retention as set by default", 4 * _DAY, "aws-sdk-sqs, CreateQueue"),
    Schedule("sqs-longest", "Amazon SQS, longest retention", 14 * _DAY, "aws-sdk-sqs, CreateQueue"),
    Schedule(
        "pubsub", "Google Pub/Sub, retention as set by default", 7 * _DAY, "Pub/Sub, Subscription properties"
    ),
    Schedule(
        "pubsub-longest", "Google Pub/Sub, longest retention", 31 * _DAY, "Pub/Sub, Subscription properties"
    ),
    Schedule(
        "kafka", "Apache Kafka, log.retention.hours by default", 7 * _DAY, "Cloudera, Kafka: Log Settings"
    ),
    Schedule(
        "celery", "Celery on Redis, one visibility timeout", _HOUR, "Celery, Using Redis: Visibility Timeout"
    ),
    Schedule("heroku", "Heroku webhooks", 3 * _DAY, "Heroku changelog, Changes to webhooks deliveries"),
)
"""GitHub is not in it: it does not redeliver by itself (GitHub, "Handling failed webhook deliveries")."""


def seconds_of(text: str) -> float:
    """Return the seconds of "90", "90s", "30m", "12h", "7d" or "2w".

    Raises `ConfigurationError` for anything else, and for nothing or less.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", text, re.IGNORECASE)
    seconds = float(found[1]) * _UNITS[found[2].lower() or "s"] if found else 0.0
    if not 0 < seconds < 1e10:
        raise ConfigurationError(f"{text!r} is no duration; write seconds, or 30m, 12h, 7d, 2w")
    return seconds


def as_text(seconds: float) -> str:
    """A duration as people say it: in the largest unit that shows it whole."""
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (60, "minute")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}{'' if seconds == unit else 's'}"
    return f"{seconds:g} seconds"


def retention(keep: float | timedelta, over: Sequence[str]) -> Iterator[Finding]:
    """Compare the retention with the schedules named in `over`, or, if none are, with all that are known.

    `over` has names of `SCHEDULES` and durations. What the user says is coming is a danger if it outlasts the
    retention; what merely might come is a warning.
    """
    seconds = keep.total_seconds() if isinstance(keep, timedelta) else float(keep)
    named = [_schedule(one) for one in over]
    late = [schedule for schedule in named or SCHEDULES if schedule.lasts > seconds]
    shown = "; ".join(f"{one.who}: {as_text(one.lasts)}" for one in late)
    mend = "give the decorator a keep= of at least {}"
    if not late:
        whom = ", ".join(one.who for one in named) or "all schedules that idempo knows of"
        yield ok(
            "retention", f"results are kept for {as_text(seconds)}, as long as repeats come from: {whom}"
        )
        return
    longest = mend.format(as_text(max(one.lasts for one in late)))
    if named:
        yield danger(
            "retention",
            f"repeats come after the {as_text(seconds)} for which results are kept, and run again ({shown})",
            longest,
        )
        return
    yield warning(
        "retention",
        f"results are kept for {as_text(seconds)}, and some senders repeat for longer ({shown})",
        f"if one of them calls, {longest}; if not, name those who do: --retries-over stripe",
    )


def _schedule(text: str) -> Schedule:
    for schedule in SCHEDULES:
        if schedule.name == text.strip().lower():
            return schedule
    try:
        seconds = seconds_of(text)
    except ConfigurationError as error:
        names = ", ".join(schedule.name for schedule in SCHEDULES)
        raise ConfigurationError(
            f"{text!r} is neither a duration, such as 7d, nor one of the schedules that are known: {names}"
        ) from error
    return Schedule(text, "as you say", int(seconds), "")
