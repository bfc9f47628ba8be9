"""Cleans prompts before they are tokenized."""

import html
import re
import warnings
from collections.abc import Callable, Iterable
from urllib.parse import unquote_plus

import ftfy
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

Rule = tuple[re.Pattern[str], str]


def normalize(prompt: str) -> str:
    """Lower-cases a prompt and strips white space, like the published script."""
    return prompt.lower().strip()


def clean_caption(prompt: str) -> str:
    """Lower-cases a caption from the web, and removes everything except its words.

    Removes links, markup, nicknames, article numbers, file names, advertisements, Chinese
    characters and unusual punctuation. This is the caption cleaner of DeepFloyd IF, applied twice
    as in its training. The published Show-1 script does not use it.
    """
    return _clean_once(_clean_once(prompt))


def cleaner(clean_captions: bool) -> Callable[[str], str]:
    """What the config's `text.clean_captions` chooses."""
    return clean_caption if clean_captions else normalize


def _rules(*rules: tuple[str, str]) -> list[Rule]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


def _apply(rules: Iterable[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


_HOST = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

_LINKS = _rules(
    ("<person>", "person"),  # a placeholder that would be removed as markup
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),  # links that the first rule exposes
)

_CHARACTERS = _rules(
    (r"@\w+\b", ""),  # nicknames
    ("[\u31c0-\u9fff]+", ""),  # CJK strokes, enclosed and compatibility forms, ideographs
    (  # every dash
        "[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
        "\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article ids
    (r"\\n", " "),  # a line break spelled out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILE})", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),  # ***SALE***
    (r"\s+\.\s+", " "),  # a full stop between spaces
)

_WORD_JOINER = re.compile("[-_]")

_WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 1920x1080; the second x is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),  # a space after punctuation
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),  # the whole caption in quotes
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def _clean_once(caption: str) -> str:
    caption = unquote_plus(caption).strip().lower()
    caption = _apply(_LINKS, caption)
    with warnings.catch_warnings():
        # A caption that looks like a path is still text.
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        caption = BeautifulSoup(caption, features="html.parser").text
    caption = _apply(_CHARACTERS, caption)
    if len(_WORD_JOINER.findall(caption)) > 3:  # this-is-my-cute-cat
        caption = _WORD_JOINER.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return _apply(_WORDS, caption).strip()
