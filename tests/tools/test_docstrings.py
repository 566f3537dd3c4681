from __future__ import annotations

from semibot.tools.docstrings import read_docstring


def test_nothing_is_said_by_no_docstring():
    assert read_docstring(None).description == ""
    assert read_docstring(None).parameters == {}


def test_the_text_before_the_first_section_is_the_description():
    found = read_docstring(
        """Look at the sky.

        Is it blue,
        or grey?

        Returns:
            The colour.
        """
    )
    assert found.description == "Look at the sky.\nIs it blue, or grey?"
    assert found.parameters == {}


def test_parameters_are_read_from_the_args_section_only():
    found = read_docstring(
        """Look at the sky.

        Args:
            city: Where to look, by name
                or by postcode.
            day (str): When.

            *rest: More.
        Raises:
            OSError: If there is no sky.
        """
    )
    assert found.parameters == {
        "city": "Where to look, by name or by postcode.",
        "day": "When.",
        "rest": "More.",
    }


def test_an_args_section_without_entries_says_nothing():
    assert read_docstring("Look.\n\nArgs:\n").parameters == {}
    assert read_docstring("Look.\n\nArgs:\n    just words\n").parameters == {}
