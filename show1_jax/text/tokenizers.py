"""Prompts to token ids, exactly as transformers 4.29's Python tokenizers made them.

That is what the released networks were run with. The tokenizers of transformers
5 are other programs: T5's treats composed characters and a written-out `</s>`
differently, CLIP's lacks the repair of broken Unicode (ftfy) before it. So T5's
file is read by SentencePiece itself, and CLIP's text is repaired here.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ftfy
import numpy as np
import sentencepiece
from absl import logging

from show1_jax.checkpoints.fields import parse_json
from show1_jax.errors import InputError

LENGTH = 77
MAX_EXTRA = 10_000  # sentinels; T5 has 100


class Tokens(NamedTuple):
    """Tokenized prompts: int32 `(batch, length)` each; the mask is 0 at padding."""

    input_ids: np.ndarray
    attention_mask: np.ndarray


class Tokenizer:
    """Turns prompts into rows of one length, cut or padded at the end."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        frame: Callable[[list[int]], list[int]],
        pad: int,
        length: int = LENGTH,
    ) -> None:
        """A tokenizer of the parts that T5's and CLIP's do not share.

        Args:
          encode: the tokens of a prompt alone.
          frame: puts the tokens of beginning and end around them.
          pad: the token of padding.
          length: tokens per prompt.
        """
        self._encode = encode
        self._frame = frame
        self._pad = pad
        self._room = length - len(frame([]))
        if self._room < 1:
            raise InputError(f"{length} tokens leave no room for a prompt (config.text.t5_tokens)")
        self.length = length
        self._cut: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Tokenizes a batch; warns once about each prompt that has to be cut."""
        ids = np.full((len(prompts), self.length), self._pad, np.int32)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            tokens = self._encode(prompt)
            self._warn_if_cut(prompt, len(tokens) - self._room)
            tokens = self._frame(tokens[: self._room])
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return Tokens(ids, mask)

    def _warn_if_cut(self, prompt: str, excess: int) -> None:
        if excess > 0 and prompt not in self._cut:
            self._cut.add(prompt)
            logging.warning(
                "The last %d of %d tokens of the prompt %r do not fit and are cut.",
                excess,
                excess + self._room,
                prompt if len(prompt) <= 40 else prompt[:40] + "...",
            )


def t5_tokenizer(folder: str | Path, length: int = LENGTH) -> Tokenizer:
    """The T5 tokenizer of a released folder (`spiece.model`, `tokenizer_config.json`).

    Raises:
      InputError: if a file is missing or cannot be read.
    """
    path = _file(folder, "spiece.model")
    config = _settings(folder)
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable SentencePiece model") from error

    special: dict[str, int] = {}
    for kind, usual in (("eos", "</s>"), ("pad", "<pad>"), ("unk", "<unk>")):
        name = _content(config.get(f"{kind}_token", usual), f"{folder}: its {kind}_token")
        special[name] = pieces.piece_to_id(name)
        if pieces.id_to_piece(special[name]) != name:
            raise InputError(f"{path}: has no piece {name!r}, the {kind}_token of this tokenizer")
    if len(special) < 3:
        raise InputError(f"{folder}: two of its eos_token, pad_token and unk_token are the same")
    end, pad, unknown = special.values()
    size, extra = pieces.get_piece_size(), config.get("extra_ids", 100)
    if type(extra) is not int or not 0 <= extra <= MAX_EXTRA:
        raise InputError(f"{folder}: extra_ids is {extra!r:.40}, not 0 to {MAX_EXTRA}")
    # T5's sentinels follow the vocabulary, the last one first.
    special |= {f"<extra_id_{i}>": size + extra - 1 - i for i in range(extra)}
    split = _splitter(special)

    def encode(prompt: str) -> list[int]:
        ids: list[int] = []
        for text, name in split(prompt):
            found = pieces.encode(text)
            if unknown in found:
                words = (each.strip(".,;:!?") for each in text.split())
                _warn_once(
                    each
                    for each in words
                    if re.search(r"\w", each) and unknown in pieces.encode(each)
                )
            ids += found
            ids += [special[name]] if name else []
        return ids

    def frame(ids: list[int]) -> list[int]:
        # A prompt that spells the end out has it already.
        return ids if ids[-1:] == [end] else [*ids, end]

    return Tokenizer(encode, frame, pad, length)


_WARNED: set[str] = set()


def _warn_once(unknown: Iterable[str]) -> None:
    words = [word for word in dict.fromkeys(unknown) if word not in _WARNED]
    if words:
        _WARNED.update(words)
        listed = ", ".join(map(repr, words))
        logging.warning("Words that the text encoder does not know: %s.", listed)


def clip_tokenizer(folder: str | Path, length: int = LENGTH) -> Tokenizer:
    """The CLIP tokenizer of a released folder (`vocab.json`, `merges.txt`).

    Raises:
      InputError: if a file is missing or cannot be read.
    """
    # Slow to import, and needed here alone. It would tell the user that torch is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    vocabulary, merges = _file(folder, "vocab.json"), _file(folder, "merges.txt")
    _settings(folder)
    try:
        loaded = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokens = json.loads(vocabulary.read_text(encoding="utf-8"))
        made = {line.replace(" ", "") for line in merges.read_text(encoding="utf-8").split("\n")}
    except Exception as error:  # the library raises bare ones
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: not a readable CLIP tokenizer ({reason})") from error
    special = dict(zip(loaded.all_special_tokens, loaded.all_special_ids, strict=True))
    # A shortened list of merges would go unnoticed and give other tokens.
    if any(
        token not in made and token not in special and len(token.removesuffix("</w>")) > 1
        for token in tokens
    ):
        raise InputError(f"{merges}: lacks merges that make tokens of {vocabulary.name}")
    start, end, pad = loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id
    split = _splitter(special)
    backend = loaded.backend_tokenizer
    # The released padding token is "!". In a prompt it is found by `split`; one that
    # the repair makes (of a full-width "！") is an ordinary exclamation mark.
    backend.encode_special_tokens = True

    def encode(prompt: str) -> list[int]:
        ids: list[int] = []
        for text, name in split(prompt):
            text = ftfy.fix_text(text).strip().lower()
            ids += backend.encode(text, add_special_tokens=False).ids
            ids += [special[name]] if name else []
        return ids

    return Tokenizer(encode, lambda ids: [start, *ids, end], pad, length)


def _splitter(names: Iterable[str]) -> Callable[[str], list[tuple[str, str]]]:
    """Cuts a text at special tokens: pairs of text and the special token behind it, or ""."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def split(text: str) -> list[tuple[str, str]]:
        parts = [*pattern.split(text), ""]
        return list(zip(parts[::2], parts[1::2], strict=True))

    return split


def _file(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"{folder}: no tokenizer here, {name} is missing")
    return path


def _settings(folder: str | Path) -> dict[str, Any]:
    """The tokenizer's settings, of which the special tokens may have a file of their own."""
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            loaded = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not readable as JSON") from error
        if not isinstance(loaded, dict):
            raise InputError(f"{path}: not a JSON object")
        settings |= loaded
    return settings


def _content(token: Any, name: str) -> str:
    """The text of a special token, which files hold bare or with flags around it."""
    content = token.get("content") if isinstance(token, dict) else token
    try:
        if isinstance(content, str) and content.encode():
            return content
    except UnicodeEncodeError:  # half of a character, which JSON can hold
        pass
    raise InputError(f"{name} is {token!r:.40}, which is no text")
