"""parcels: what went wrong, and whether to try again. The contract, with every field explained, is in wit/."""

import json
from email.utils import parsedate_to_datetime

import wit_world
from componentize_py_types import Err
from wit_world.imports.types import (
    Attempt, BreakerSignal, Class, Defaults, Description, Effect, Endpoint, Header, Interest, Next_Deliver, Next_Retry,
    Outcome, Outcome_Failure, Response, Verdict,
)

# The wait where the upstream asks for none.
WAIT_MS = 2000
# Which of the upstream's hints are read.
HINTS = ["retry-after", "retry-after-ms", "x-ms-retry-after-ms", "x-should-retry", "stripe-should-retry"]


class WitWorld(wit_world.WitWorld):
    def describe(self) -> Description:
        # All that `decide` sees of an answer besides its status.
        interest = Interest(
            path=False,
            request_headers=[],
            request_body_bytes=0,
            response_headers=HINTS,
            response_body_bytes=200,
        )
        any_request = Endpoint(
            name="any",
            method="*",
            path="/{*rest}",
            # What it may do: the host takes the stricter of this and the method's own.
            effect=Effect.SAFE,
            interest=interest,
            settled=[],
            commit_within_ms=None,
            defaults=Defaults(None, None, None, [], None),
        )
        return Description("parcels", "0.1.0", [any_request], None)

    def configure(self, settings: str) -> None:
        """Takes the table `policy_settings` of the configuration, as JSON; an `Err` refuses the policy."""
        try:
            json.loads(settings)
        except ValueError as error:
            raise Err(str(error)) from error

    def decide(self, attempt: Attempt, outcome: Outcome) -> Verdict:
        if isinstance(outcome, Outcome_Failure):
            if not outcome.value.sent:
                return retry(Class.NOT_APPLIED, BreakerSignal.FAILURE, WAIT_MS, "nothing was sent")
            return in_doubt(attempt, WAIT_MS)
        headers = outcome.value.headers
        asked = asked_ms(headers, attempt.now_unix_ms)
        verdict = judge(attempt, outcome.value, asked)
        return hinted(verdict, attempt, headers, WAIT_MS if asked is None else asked)


def judge(attempt: Attempt, answer: Response, asked: int | None) -> Verdict:
    wait = WAIT_MS if asked is None else asked
    # An API that answers 200 while it still works on it.
    if answer.status == 200 and answer.body.startswith(b"PENDING"):
        return retry(Class.NOT_APPLIED, BreakerSignal.SUCCESS, WAIT_MS, "pending")
    # The same request is to be sent elsewhere: nothing was done here.
    if answer.status in (307, 308) and attempt.effect != Effect.SAFE:
        return deliver(Class.NOT_APPLIED, BreakerSignal.SUCCESS, "to be sent elsewhere")
    if 200 <= answer.status < 400:
        return deliver(Class.APPLIED, BreakerSignal.SUCCESS, "success")
    if answer.status == 425:
        return retry(Class.NOT_APPLIED, BreakerSignal.IGNORE, wait, "too early")
    if answer.status == 429:
        wait = 5000 if asked is None else asked
        return retry(Class.THROTTLED, BreakerSignal.IGNORE, wait, "fewer requests", pause_ms=wait)
    if leaves_unknown(answer.status):
        return in_doubt(attempt, wait)
    return deliver(Class.REJECTED, BreakerSignal.SUCCESS, "refused")


def in_doubt(attempt: Attempt, delay_ms: int) -> Verdict:
    """A write that may have been done is never sent again blindly."""
    if attempt.effect == Effect.UNSAFE:
        return deliver(Class.UNKNOWN, BreakerSignal.FAILURE, "it may have been done")
    return retry(Class.UNKNOWN, BreakerSignal.FAILURE, delay_ms, "no usable answer")


def leaves_unknown(status: int) -> bool:
    """The upstream or a gateway gave up, is in trouble (any 5xx but 501, 505, 511), or did not answer in HTTP."""
    if status in (501, 505, 511):
        return False
    return status in (408, 460, 499) or status < 200 or status >= 500


def hinted(verdict: Verdict, attempt: Attempt, headers: list[Header], delay_ms: int) -> Verdict:
    """`x-should-retry: false` ends a retry; `true` allows one where sending again is harmless: it is no proof for a write."""
    hint = value(headers, "x-should-retry") or value(headers, "stripe-should-retry")
    if hint == "false" and isinstance(verdict.next, Next_Retry):
        verdict.next = Next_Deliver()
    elif hint == "true" and verdict.class_ == Class.REJECTED and attempt.effect != Effect.UNSAFE:
        return retry(Class.NOT_APPLIED, BreakerSignal.IGNORE, delay_ms, "refused, but the upstream says that a retry helps")
    return verdict


def asked_ms(headers: list[Header], now_unix_ms: int) -> int | None:
    """The wait that the upstream asks for: `retry-after-ms`, else `retry-after` in seconds or as a date."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        ms = number(value(headers, name))
        if ms is not None:
            return ms
    after = value(headers, "retry-after")
    seconds = number(after)
    if seconds is not None:
        return seconds * 1000
    try:
        return max(0, int(parsedate_to_datetime(after or "").timestamp() * 1000) - now_unix_ms)
    except (TypeError, ValueError, OverflowError):
        return None


def number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 12 else None


def value(headers: list[Header], name: str) -> str | None:
    return next((header.value.strip() for header in headers if header.name == name), None)


def deliver(class_: Class, breaker: BreakerSignal, reason: str) -> Verdict:
    return Verdict(class_, breaker, Next_Deliver(), None, None, reason)


def retry(class_: Class, breaker: BreakerSignal, delay_ms: int, reason: str, pause_ms: int | None = None) -> Verdict:
    return Verdict(class_, breaker, Next_Retry(delay_ms), None, pause_ms, reason)
