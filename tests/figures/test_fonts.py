"""Characters that no installed font has."""

import warnings

import pytest

from pycotmech.figures import fonts, frame


def test_missing_characters_are_named_in_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "wider", lambda: ())
    figure, axes = frame.framed(1, 1, "所以答案是十二", ["made from nothing"])
    axes[0, 0].set_xticks([0], ["因此"])
    with pytest.warns(UserWarning, match=r"no installed font has 9 characters of this figure .*, drawn as boxes") as said:
        frame.saved(figure, tmp_path / "x.png")
    assert len(said) == 1


def test_wider_fonts_follow_the_default_one_if_they_are_installed(monkeypatch):
    fonts.wider.cache_clear()
    monkeypatch.setattr(fonts.font_manager, "get_font_names", lambda: ["SimHei", "Noto Sans CJK SC", "Other"])
    try:
        assert fonts.families() == [*fonts.rcParams["font.family"], "Noto Sans CJK SC", "SimHei"]
    finally:
        fonts.wider.cache_clear()


def test_other_warnings_pass_and_latin_text_gives_none(tmp_path):
    with pytest.warns(UserWarning, match="^mine$"), fonts.one_warning():
        warnings.warn("mine", stacklevel=1)
    figure, _ = frame.framed(1, 1, "Plain → text", [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame.saved(figure, tmp_path / "x.svg")


def test_a_text_keeps_its_own_font_and_later_settings_count(monkeypatch):
    monkeypatch.setattr(fonts, "wider", lambda: ("SimHei",))
    figure, axes = frame.framed(1, 1, "title", [])
    text = axes[0, 0].text(0, 0, "code", family="monospace")
    for _ in range(2):  # a figure may be saved again
        frame.saved(figure, None)
    assert text.get_fontfamily() == ["monospace", "SimHei"]
    monkeypatch.setitem(fonts.rcParams, "font.family", ["serif"])
    assert fonts.families() == ["serif", "SimHei"]
