"""Characters that the usual font lacks: installed fonts that have them, or a hint which package to
install.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

USUAL = "DejaVu Sans"  # comes with matplotlib
# of Debian and Ubuntu, for characters whose Unicode names begin with one of these words
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "BOPOMOFO")
CJK_PACKAGE = "fonts-noto-cjk"
# fonts of coloured bitmaps cannot be drawn by matplotlib
EMOJI, OTHERS = "fonts-symbola", "fonts-noto-core"
SCRIPTS = "猫か한अকஅతกကកአ☃🦜"  # one character of each


@cache
def fallback_families() -> tuple[str, ...]:
    """Families of installed fonts for the common scripts that the usual font lacks."""
    return tuple(find_fonts(SCRIPTS)[0])


def find_fonts(text: str) -> tuple[list[str], str]:
    """Families of installed fonts that together draw what the usual font lacks, and the characters
    that no font has.
    """
    usual = _characters(font_manager.findfont(USUAL)) | _characters(
        font_manager.findfont(font_manager.FontProperties())
    )
    missing = {
        char
        for char in text
        if char.isprintable() and not char.isspace() and ord(char) not in usual
    }
    families = []
    while missing:
        path = max(_installed(), key=lambda path: len(_covered(missing, path)), default="")
        if not (found := _covered(missing, path)):
            break
        if path not in {entry.fname for entry in font_manager.fontManager.ttflist}:
            # installed since matplotlib listed the fonts of this machine
            font_manager.fontManager.addfont(path)
        families.append(font_manager.get_font(path).family_name)
        missing -= found
    return families, "".join(sorted(missing))


def describe_missing(missing: str) -> str:
    """What to do about characters that no installed font has."""
    packages = sorted({_find_package(char) for char in missing})
    shown = missing if len(missing) <= 20 else missing[:20] + "…"
    return (
        f"no installed font has the characters {shown}, so a box or nothing is drawn in their"
        " place: install a font that has them (Debian and Ubuntu: apt-get install"
        f" {' '.join(packages)}), then start again"
    )


def _find_package(char):
    if unicodedata.category(char) in ("So", "Sk"):
        return EMOJI
    script = unicodedata.name(char, "").split(" ")[0]
    return CJK_PACKAGE if script in CJK else OTHERS


@cache
def _installed() -> tuple[str, ...]:
    """The fonts of this machine, upright ones of usual weight first."""
    odd = ("bold", "oblique", "italic", "light", "thin", "black", "condensed", "medium")
    return tuple(
        sorted(
            font_manager.findSystemFonts(),
            key=lambda path: (any(word in path.lower() for word in odd), path),
        )
    )


@cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has; none where it cannot be drawn or has a box for every
    character.
    """
    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):  # coloured bitmaps, a damaged file, or no file
        return frozenset()
    name = font.family_name.lower()
    return frozenset() if "last" in name and "resort" in name else frozenset(font.get_charmap())


def _covered(missing: set[str], path: str) -> set[str]:
    characters = _characters(path)
    return {char for char in missing if ord(char) in characters}
