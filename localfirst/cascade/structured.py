"""
The ladder for structured output: answer, validate, ask once more, then the next candidate.

It is asked for natively, which a backend without it puts into words; a model that had it and
wrote prose all the same is told in words with its correction.
"""

from __future__ import annotations

from typing import Any

import msgspec

from localfirst.cascade import contract, report
from localfirst.cascade.run import Cascade
from localfirst.errors import CascadeExhausted, LocalFirstError
from localfirst.events import FinishReason, Reply
from localfirst.types import Attempt, Call, ChatRequest, FailureClass, Rung

ASKED_AT_MOST = 2  # by one candidate: the answer, and one correction
CANDIDATES_AT_MOST = 8


async def reply(
    cascade: Cascade,
    call: Call,
    schema: Any,
    *,
    cut_counts: bool = True,
) -> Reply:
    """
    Get an answer that is valid against *schema*; `Reply.parsed` is the object.

    Args:
        cascade: who answers.
        call: with its request decodable; it is asked for a whole answer.
        schema: a Pydantic model class (`parsed` is then an instance), or a JSON schema.
        cut_counts: whether an answer that ended at its token limit, or that calls a tool,
            must be valid too; else it is handed over as it is, without `parsed`.

    Raises:
        CascadeExhausted: nobody could, or nobody's answer was valid.
        InvalidRequest: the schema is none.
    """
    rules = contract.schema_of(schema)
    request = msgspec.structs.replace(call.chat, schema=rules, stream=False)
    attempts: list[Attempt] = []
    avoided: set[tuple[str, str]] = set()
    clock, whole_s = cascade.clock, call.deadline_s
    over = clock.monotonic() + (cascade.settings.cascade.deadline_s if whole_s is None else whole_s)
    for _ in range(CANDIDATES_AT_MOST):
        if attempts and clock.monotonic() >= over:
            break
        if whole_s is not None:
            call = msgspec.structs.replace(call, deadline_s=over - clock.monotonic())
        try:
            answer = await _ask(cascade, call, request, avoided)
        except LocalFirstError as error:
            raise _with_all(error, attempts) from None
        if not cut_counts and answer.finish_reason is not FinishReason.STOP:
            return msgspec.structs.replace(answer, attempts=(*attempts, *answer.attempts))
        found = await _corrected(cascade, call, request, answer, schema, attempts)
        if found is not None:
            value, last = found
            return msgspec.structs.replace(last, parsed=value, attempts=tuple(attempts))
        avoided.add((answer.route.partition("/")[0], answer.model))
        if not call.fallback:
            break
    raise report.exhausted(attempts, ())


async def _ask(
    cascade: Cascade, call: Call, request: ChatRequest, avoided: set[tuple[str, str]]
) -> Reply:
    asked = msgspec.structs.replace(
        call, request=request, body=b"", relay=False, decode=None, stream=False
    )
    return await (await cascade.open(asked, avoid=frozenset(avoided))).reply()


async def _corrected(
    cascade: Cascade,
    call: Call,
    request: ChatRequest,
    first: Reply,
    schema: Any,
    attempts: list[Attempt],
) -> tuple[Any, Reply] | None:
    """The instance that *first* or its correction holds, or None; notes what was tried."""
    last, rules = first, request.schema or {}
    for turn in range(ASKED_AT_MOST):
        attempts.extend(last.attempts)
        try:
            value = contract.instance(schema, contract.fulfilled(last.text, rules))
        except contract.ContractBroken as broken:
            problem = str(broken)
            cascade.judged(last, fulfilled=False)
            _mark(attempts, f" at `{broken.place}`" if broken.place else "")
        else:
            cascade.judged(last, fulfilled=True)
            return value, last
        if turn + 1 < ASKED_AT_MOST:
            again = contract.asked_again(contract.instructed(request), last.text, problem)
            same = msgspec.structs.replace(call, model=_name(first), fallback=False)
            try:
                last = await _ask(cascade, same, again, set())
            except LocalFirstError as error:
                attempts.extend(error.attempts)
                return None
    return None


def _name(reply: Reply) -> str:
    """The name that asks the same model again; what was pulled is installed by now."""
    return f"local/{reply.model}" if reply.rung is Rung.PULL else reply.route


def _mark(attempts: list[Attempt], place: str) -> None:
    """The last attempt answered, and what it said does not count; its words stay out of it."""
    attempts[-1] = msgspec.structs.replace(
        attempts[-1],
        outcome=str(FailureClass.INVALID_RESPONSE),
        message=f"the answer does not fulfil the schema{place}",
    )


def _with_all(error: LocalFirstError, attempts: list[Attempt]) -> LocalFirstError:
    if not attempts:
        return error
    if not isinstance(error, CascadeExhausted):
        error.attempts = (*attempts, *error.attempts)
        return error
    return report.exhausted(
        [*attempts, *error.attempts], error.skipped, retry_after_s=error.retry_after_s
    )
