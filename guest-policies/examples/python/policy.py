"""parcels: what went wrong, and whether to try again. The contract, with every field explained, is in wit/."""

import json

import wit_world
from componentize_py_types import Err
from wit_world.imports.types import (
    Attempt, BreakerSignal, Class, Defaults, Description, Effect, Endpoint, Interest, Next_Deliver, Next_Retry, Outcome,
    Outcome_Response, Verdict,
)


class WitWorld(wit_world.WitWorld):
    def describe(self) -> Description:
        # All that `decide` sees of an answer besides its status.
        interest = Interest(
            path=False,
            request_headers=[],
            request_body_bytes=0,
            response_headers=["retry-after"],
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
        if isinstance(outcome, Outcome_Response):
            answer = outcome.value
            # An API that answers 200 while it still works on it.
            if answer.body.startswith(b"PENDING"):
                return retry(Class.NOT_APPLIED, BreakerSignal.SUCCESS, 2000, "pending")
            if answer.status < 400:
                return deliver(Class.APPLIED, BreakerSignal.SUCCESS, "success")
            if answer.status == 429:
                return retry(Class.THROTTLED, BreakerSignal.IGNORE, 5000, "fewer requests", pause_ms=5000)
            if answer.status < 500:
                return deliver(Class.REJECTED, BreakerSignal.SUCCESS, "refused")
        # A write that may have been done is never sent again blindly.
        if attempt.effect == Effect.UNSAFE:
            return deliver(Class.UNKNOWN, BreakerSignal.FAILURE, "it may have been done")
        return retry(Class.UNKNOWN, BreakerSignal.FAILURE, 2000, "no usable answer")


def deliver(class_: Class, breaker: BreakerSignal, reason: str) -> Verdict:
    return Verdict(class_, breaker, Next_Deliver(), None, None, reason)


def retry(class_: Class, breaker: BreakerSignal, delay_ms: int, reason: str, pause_ms: int | None = None) -> Verdict:
    return Verdict(class_, breaker, Next_Retry(delay_ms), None, pause_ms, reason)
