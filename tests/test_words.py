from pycotmech._words import listed, plural


def test_counts_have_their_noun_in_the_right_number():
    assert plural(0, "head") == "0 heads" and plural(1, "head") == "1 head" and plural(2, "head") == "2 heads"
    assert plural(1, "entry", "entries") == "1 entry" and plural(1_234, "entry", "entries") == "1,234 entries"


def test_lists_end_with_and():
    assert (
        listed([]) == ""
        and listed(["a"]) == "a"
        and listed(["a", "b"]) == "a and b"
        and listed(["a", "b", "c"]) == "a, b and c"
    )
