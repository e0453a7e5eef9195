"""
How well a password would resist guessing, by zxcvbn, and its list of the commonest passwords.

zxcvbn as it comes tries every combination of substitutions ("4" or "@" for "a"):
128 signs of the wrong kind keep it busy for 12 seconds. Its matchers are used here
with one substitution a letter, over the first 32 characters: whoever hammers on
a PUBLIC method must not keep a core, and an honest password that long has its
four points. It still takes up to 50 ms, and so runs in a child process (strength.py).
"""

import re
from collections.abc import Mapping
from typing import Any

from zxcvbn import feedback, matching, scoring, time_estimates

from services.auth.domain.passwords import SHORTEST, Estimate, Hint

SCORED_CHARACTERS = 32
# Loaded at the import, that is at the start. A shorter one is refused for its length.
COMMON_PASSWORDS = frozenset(
    word.casefold() for word in matching.RANKED_DICTIONARIES["passwords"] if len(word) >= SHORTEST
)
_MATCHERS = (
    matching.dictionary_match,
    matching.reverse_dictionary_match,
    matching.spatial_match,
    matching.sequence_match,
    matching.regex_match,
)
_UNPRINTABLE = re.compile(r"[^ -~]")
# The longest repeats ("aab" in "aabaab") and the shortest ("a"): the score takes the likelier.
_REPEATS = (re.compile(r"(.+)\1+", re.DOTALL), re.compile(r"(.+?)\1+", re.DOTALL))
_Dictionaries = Mapping[str, Mapping[str, int]]
_Match = dict[str, Any]


def estimate(password: str, email: str) -> Estimate:
    """Scores a password; an address counts as a word that guessers try first."""
    # zxcvbn's own entry point would keep the address in a dictionary all calls share.
    own = [part for part in (email.lower(), *re.split(r"\W+", email.lower())) if part]
    dictionaries = {
        **matching.RANKED_DICTIONARIES,
        "user_inputs": matching.build_ranked_dict(own),
    }
    password = password[:SCORED_CHARACTERS]
    guessed = scoring.most_guessable_match_sequence(password, _matches(password, dictionaries))
    score = int(time_estimates.guesses_to_score(guessed["guesses"]))
    said = feedback.get_feedback(score, guessed["sequence"])
    warning = said["warning"]
    return Estimate(
        score, Hint(warning) if warning else None, tuple(map(Hint, said["suggestions"]))
    )


def _matches(password: str, dictionaries: _Dictionaries) -> list[_Match]:
    found: list[_Match] = []
    for matcher in _MATCHERS:
        found += matcher(password, _ranked_dictionaries=dictionaries)
    # It reads "1" and a line's end as a date, and fails.
    found += matching.date_match(_UNPRINTABLE.sub("?", password))
    found += matching.l33t_match(password, dictionaries, _l33t_table=_substitutions(password))
    found += _repeats(password, dictionaries)
    return sorted(found, key=lambda match: (match["i"], match["j"]))


def _substitutions(password: str) -> dict[str, list[str]]:
    """Returns zxcvbn's table with one sign a letter, each for one letter, of those that occur."""
    table: dict[str, list[str]] = {}
    taken: set[str] = set()
    for letter, signs in matching.L33T_TABLE.items():
        for sign in sorted(signs, key=password.count, reverse=True)[:1]:
            if sign in password and sign not in taken:
                table[letter] = [sign]
                taken.add(sign)
    return table


def _repeats(password: str, dictionaries: _Dictionaries) -> list[_Match]:
    """Finds "aaa" and "abcabc" as zxcvbn's repeat_match does, with the matchers of here."""
    found = []
    for match in (match for pattern in _REPEATS for match in pattern.finditer(password)):
        # What a longest repeat repeats may itself be one.
        base = _REPEATS[1].fullmatch(match[0])[1]  # type: ignore[index]
        analysed = scoring.most_guessable_match_sequence(base, _matches(base, dictionaries))
        found.append(
            {
                "pattern": "repeat",
                "i": match.start(),
                "j": match.end() - 1,
                "token": match[0],
                "base_token": base,
                "base_guesses": analysed["guesses"],
                "base_matches": analysed["sequence"],
                "repeat_count": len(match[0]) / len(base),
            }
        )
    return found
