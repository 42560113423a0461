"""Inquiries -> what the judge's replies say, each asked until its reply can be read. Never imports mlx.

Invariant: every inquiry ends with what a well-formed reply said, or with the reason why there is none. Each attempt
is a question with a key of its own and its reply, read or not, is in the ledger: going on after a crash reads the
same replies again and asks only for those that never came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_sumrl.config import Criterion, JudgingConfig
from mlx_sumrl.endpoint.asking import Asked, Asking, Stop
from mlx_sumrl.endpoint.client import Endpoint
from mlx_sumrl.endpoint.ledger import Ledger, Spent
from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.questions import Asks, Inquiry, JudgeQuestion, JudgeWording
from mlx_sumrl.judging.replies import Preference, Verdict, digit_in, preference_in, scores_in

Reading = Verdict | dict[Criterion, Verdict] | Preference
"""One criterion's score, those of all, or a preference."""
MALFORMED = "malformed reply"
NOT_ASKED = "not asked"
LEDGER_IDENTITY = {"program": "judge"}
"""A ledger's answers may be of many models and options: all of them are in the keys."""


@dataclass(slots=True)
class Found:
    """What became of inquiries."""

    readings: dict[Inquiry, Reading] = field(default_factory=dict)
    unscored: dict[Inquiry, str] = field(default_factory=dict)
    """Why there is no reading."""
    malformed: int = 0
    """Replies that did not have the form asked for, those included that a later attempt made up for."""
    example: str | None = None
    """The first of those replies."""
    stopped: str | None = None
    """Why inquiries were left open; None when none was."""


def read_reply(asks: Asks, text: str, tokens: Any) -> Reading | None:
    """What a reply says to a question of this kind; None where it does not have the form asked for."""
    if asks == "pair":
        return preference_in(text)
    if asks == "all":
        return scores_in(text)
    return digit_in(text, tokens)


class Judge:
    """Asks one server; what it was told is in the ledger."""

    def __init__(
        self,
        config: JudgingConfig,
        endpoint: Endpoint,
        ledger: Ledger,
        stop: Stop,
        show: Callable[[Asked, Spent], None] = lambda asked, spent: None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``endpoint`` sends the fields of `JudgeWording`; ``show`` and ``tell`` are those of `Asking`."""
        self._config = config
        self._endpoint = endpoint
        self._ledger = ledger
        self._tell = tell
        self._wording = JudgeWording(config)
        self._asking: Asking[JudgeQuestion] = Asking(
            config, endpoint, ledger, self._wording, stop, show=show, tell=tell
        )

    async def ask(self, inquiries: Sequence[Inquiry]) -> Found:
        """Ask what the ledger does not know yet.

        Raises:
            UserError: what no other question would fare better with, as a wrong key. Replies that came are kept.
        """
        found = Found()
        waiting: Sequence[Inquiry] = list(dict.fromkeys(inquiries))
        for attempt in range(self._config.malformed_attempts):
            questions = [self._wording.question(inquiry, attempt) for inquiry in waiting]
            if attempt:
                self._tell(f"{len(waiting):,} replies were not of the form asked for: asking again")
            asked = await self._run(questions)
            waiting = [one.inquiry for one in questions if not self._settle(one, asked.stopped, found)]
            if asked.stopped is not None:
                found.stopped = asked.stopped
                break
            if not waiting:
                break
        for inquiry in waiting:
            found.unscored[inquiry] = MALFORMED
        return found

    async def _run(self, questions: Sequence[JudgeQuestion]) -> Asked:
        try:
            # Two rows with the same text are one question.
            return await self._asking.run(list({one.key: one for one in questions}.values()))
        except UserError as error:
            if self._wording.fields and not self._ledger.answers and "status 4" in str(error):
                hint = f"if it is log-probabilities that it refuses, set {self._endpoint.option('top_logprobs')} to 0"
                raise UserError(f"{error}; {hint}") from None
            raise

    def _settle(self, question: JudgeQuestion, stopped: str | None, found: Found) -> bool:
        """Whether the inquiry has found its end; False where its reply was malformed."""
        answer: Mapping[str, Any] | None = self._ledger.answers.get(question.key)
        if answer is None:
            failure = self._ledger.failures.get(question.key)
            found.unscored[question.inquiry] = failure["why"] if failure else f"{NOT_ASKED}: {stopped}"
            return True
        reading = read_reply(question.inquiry.asks, answer["text"], answer["tokens"])
        if reading is None:
            found.malformed += 1
            found.example = found.example or answer["text"]
            return False
        found.readings[question.inquiry] = reading
        return True


def judging_endpoint(config: JudgingConfig, prefix: str = "--") -> Endpoint:
    """The client of the judge's server. Raises `UserError` for a URL that is none, or a key that is not there."""
    assert config.server is not None  # the config has checked it
    return Endpoint(config, config.server, prefix=prefix, fields=JudgeWording(config).fields)
