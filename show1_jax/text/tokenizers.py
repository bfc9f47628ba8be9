"""Converts prompts to token ids, exactly like the Python tokenizers of transformers 4.29.

The released networks were run with those. The tokenizers of transformers 5 differ: T5's treats
composed characters and a literal `</s>` differently, and CLIP's does not repair broken Unicode
(ftfy). So SentencePiece reads T5's file here, and this module repairs the text for CLIP.

Hidden state: `_WARNED` holds the unknown words that the program has warned about, so that it warns
about each once, and about `MAX_WARNINGS` at most. `clip_tokenizer` sets an environment variable of
transformers.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, NamedTuple

import ftfy
import numpy as np
import sentencepiece
from absl import logging
from etils.epath import Path

from show1_jax.checkpoints.fields import parse_json
from show1_jax.errors import InputError
from show1_jax.files import on_disk

LENGTH = 77  # CLIP has a position for each of its tokens
MAX_EXTRA = 10_000  # sentinels; T5 has 100 of them
MAX_WARNINGS = 100  # of unknown words, and of prompts that are too long; data sets have millions


def token_count(encoder: str, t5_tokens: int) -> int:
    """How many tokens of each prompt a text encoder reads.

    Args:
      encoder: "t5" or "clip".
      t5_tokens: the config's number for T5.
    """
    return t5_tokens if encoder == "t5" else LENGTH


class Tokens(NamedTuple):
    """Tokens of prompts: int32 `(batch, length)` each; the mask is 0 at padding."""

    input_ids: np.ndarray
    attention_mask: np.ndarray


class Tokenizer:
    """Converts prompts to rows of tokens of one length, cut or padded at the end."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        frame: Callable[[list[int]], list[int]],
        pad: int,
        length: int = LENGTH,
        unknown: Callable[[str], list[str]] = lambda prompt: [],
    ) -> None:
        """Makes a tokenizer from the parts in which T5 and CLIP differ.

        Args:
          encode: converts a prompt to tokens.
          frame: adds the tokens for beginning and end.
          pad: the padding token.
          length: number of tokens per prompt.
          unknown: finds the words of a prompt that have no tokens.

        Raises:
          InputError: if `length` leaves no room for a prompt.
        """
        self._encode = encode
        self._frame = frame
        self._pad = pad
        self._room = length - len(frame([]))
        if self._room < 1:
            raise InputError(
                f"{length} tokens leave no room for a prompt; raise config.text.t5_tokens"
            )
        self.length = length
        self.unknown = unknown
        self._cut: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Converts a batch of prompts, and warns once about each prompt that is too long.

        Threads may call it at the same time.
        """
        ids = np.full((len(prompts), self.length), self._pad, np.int32)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            if len(_WARNED) < MAX_WARNINGS:
                _warn_once(self.unknown(prompt))
            tokens = self._encode(prompt)
            self._warn_if_cut(prompt, len(tokens) - self._room)
            tokens = self._frame(tokens[: self._room])
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return Tokens(ids, mask)

    def _warn_if_cut(self, prompt: str, excess: int) -> None:
        if excess > 0 and prompt not in self._cut and len(self._cut) < MAX_WARNINGS:
            self._cut.add(prompt)
            logging.warning(
                "Cut the last %d of %d tokens of the prompt %r, which is too long.",
                excess,
                excess + self._room,
                prompt if len(prompt) <= 40 else prompt[:40] + "...",
            )


def tokenizer(encoder: str, folder: str | PathLike[str], length: int) -> Tokenizer:
    """Loads the tokenizer of a text encoder, "t5" or "clip"; raises InputError as they do."""
    return (t5_tokenizer if encoder == "t5" else clip_tokenizer)(folder, length)


def t5_tokenizer(folder: str | PathLike[str], length: int = LENGTH) -> Tokenizer:
    """Loads the T5 tokenizer of a released folder (`spiece.model`, `tokenizer_config.json`).

    The tokenizer warns about unknown words, once per program.

    Raises:
      InputError: if a file is missing or cannot be read.
    """
    path = _file(folder, "spiece.model")
    config = _settings(folder)
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} is not a readable SentencePiece model") from error

    special: dict[str, int] = {}
    for kind, usual in (("eos", "</s>"), ("pad", "<pad>"), ("unk", "<unk>")):
        name = _content(config.get(f"{kind}_token", usual), f"{folder}: its {kind}_token")
        special[name] = pieces.piece_to_id(name)
        if pieces.id_to_piece(special[name]) != name:
            raise InputError(
                f"{path} has no piece {name!r}, which is the {kind}_token of this tokenizer"
            )
    if len(special) < 3:
        raise InputError(
            f"{folder}: eos_token, pad_token and unk_token must differ, but two are equal"
        )
    end, pad, unknown = special.values()
    size, extra = pieces.get_piece_size(), config.get("extra_ids", 100)
    if type(extra) is not int or not 0 <= extra <= MAX_EXTRA:
        raise InputError(f"{folder}: extra_ids is {extra!r:.40}, but must be 0 to {MAX_EXTRA}")
    # T5's sentinels follow the vocabulary in reverse order.
    special |= {f"<extra_id_{i}>": size + extra - 1 - i for i in range(extra)}
    split = _splitter(special)

    def encode(prompt: str) -> list[int]:
        ids: list[int] = []
        for text, name in split(prompt):
            ids += pieces.encode(text)
            ids += [special[name]] if name else []
        return ids

    def unknown_words(prompt: str) -> list[str]:
        texts = [text for text, _ in split(prompt) if unknown in pieces.encode(text)]
        words = (word.strip(".,;:!?") for text in texts for word in text.split())
        return [word for word in words if re.search(r"\w", word) and unknown in pieces.encode(word)]

    def frame(ids: list[int]) -> list[int]:
        # A prompt that ends with a literal end token has it already.
        return ids if ids[-1:] == [end] else [*ids, end]

    return Tokenizer(encode, frame, pad, length, unknown_words)


_WARNED: set[str] = set()


def _warn_once(unknown: Iterable[str]) -> None:
    words = [word for word in dict.fromkeys(unknown) if word not in _WARNED]
    if words:
        _WARNED.update(words)
        listed = ", ".join(map(repr, words))
        logging.warning("The text encoder does not know these words: %s.", listed)


def clip_tokenizer(folder: str | PathLike[str], length: int = LENGTH) -> Tokenizer:
    """Loads the CLIP tokenizer of a released folder (`vocab.json`, `merges.txt`).

    Raises:
      InputError: if a file is missing or cannot be read.
    """
    # Imported here because it is slow. Without this variable it warns that torch is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    vocabulary, merges = _file(folder, "vocab.json"), _file(folder, "merges.txt")
    _settings(folder)
    try:
        with on_disk(Path(folder)) as local:
            loaded = CLIPTokenizer.from_pretrained(str(local), local_files_only=True)
        tokens = json.loads(vocabulary.read_text(encoding="utf-8"))
        made = {line.replace(" ", "") for line in merges.read_text(encoding="utf-8").split("\n")}
    except Exception as error:  # the library raises bare Exceptions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder} has no readable CLIP tokenizer ({reason})") from error
    special = dict(zip(loaded.all_special_tokens, loaded.all_special_ids, strict=True))
    # The library accepts a truncated list of merges, which gives wrong tokens.
    if any(
        token not in made and token not in special and len(token.removesuffix("</w>")) > 1
        for token in tokens
    ):
        raise InputError(
            f"{merges} lacks merges for tokens of {vocabulary.name}; it may be truncated"
        )
    start, end, pad = loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id
    split = _splitter(special)
    backend = loaded.backend_tokenizer
    # The released padding token is "!". `split` finds it in prompts. An exclamation mark that ftfy
    # makes of a full-width "！" is an ordinary token.
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
    """Splits a text at special tokens into pairs: text, and the special token after it or ""."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def split(text: str) -> list[tuple[str, str]]:
        parts = [*pattern.split(text), ""]
        return list(zip(parts[::2], parts[1::2], strict=True))

    return split


def _file(folder: str | PathLike[str], name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"{folder} has no tokenizer: {name} is missing")
    return path


def _settings(folder: str | PathLike[str]) -> dict[str, Any]:
    """Reads a tokenizer's settings; special tokens may be in a second file."""
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            loaded = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not readable as JSON") from error
        if not isinstance(loaded, dict):
            raise InputError(f"{path} is not a JSON object")
        settings |= loaded
    return settings


def _content(token: Any, name: str) -> str:
    """Returns the text of a special token, which is a string or a dictionary with flags."""
    content = token.get("content") if isinstance(token, dict) else token
    try:
        if isinstance(content, str) and content.encode():
            return content
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        pass
    raise InputError(f"{name} is {token!r:.40}, which is not valid text")
