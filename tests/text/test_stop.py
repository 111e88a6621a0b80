"""Stop strings are found wherever they complete."""

from __future__ import annotations

import random

from neuron_server.text.stop import StopMatcher


def cut(stops, texts):
    """What a client sees: the texts up to and including the first stop."""
    matcher, seen = StopMatcher(stops), ""
    for text in texts:
        keep = matcher.feed(text)
        seen += text if keep is None else text[:keep]
        if keep is not None:
            return seen, True
    return seen, False


def test_a_stop_inside_one_token_cuts_that_token():
    assert cut(["\n"], ["ab", "c\nd", "e"]) == ("abc\n", True)


def test_a_stop_across_three_tokens_is_found():
    assert cut(["END."], ["a E", "N", "D. b"]) == ("a END.", True)


def test_the_stop_that_completes_first_wins():
    assert cut(["bcde", "cd"], ["abcdef"]) == ("abcd", True)


def test_an_overlap_shorter_than_a_longer_stop_is_kept():
    assert cut(["xy", "aaaaaaaab"], ["aaaa", "aaaax", "y"]) == ("aaaaaaaaxy", True)


def test_no_stop_means_no_cut():
    assert cut(["zz"], ["z", "az", "a"]) == ("zaza", False)
    assert cut([], ["a"]) == ("a", False)


def test_an_empty_stop_ends_with_the_first_token():
    assert cut([""], ["Hello", "x"]) == ("Hello", True)


def test_the_result_does_not_depend_on_token_borders():
    draw = random.Random(5)
    for _ in range(2000):
        text = "".join(draw.choice("ab") for _ in range(draw.randrange(1, 24)))
        stops = ["".join(draw.choice("ab") for _ in range(draw.randrange(1, 6))) for _ in range(3)]
        texts, rest = [], text
        while rest:
            n = draw.randrange(0, 5)
            texts.append(rest[:n])
            rest = rest[n:]
        assert cut(stops, texts) == cut(stops, list(text))
