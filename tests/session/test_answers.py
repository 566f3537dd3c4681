from __future__ import annotations

from semibot.session.answers import MAX_ANSWERS, Answers
from semibot.wire.frames import CommandAck


def test_only_the_newest_answers_are_remembered() -> None:
    answers = Answers()
    note = CommandAck(commands=("0",))
    for number in range(MAX_ANSWERS + 1):
        answers.expect(str(number))
    answers.give("0", note)
    answers.give("1", note)
    assert "0" not in answers
    assert answers.of("0") is None
    assert answers.of("1") is note
    answers.clear()
    assert "1" not in answers
