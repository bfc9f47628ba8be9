"""Makes text encoders that are random and never trained, for small networks trained from nothing.

Their vocabulary is the words of the captions, which random embeddings distinguish as well as
learned ones; the denoisers learn what they mean. Because they are frozen, embeddings can be
computed once, like those of T5-XXL.

All words that T5's tokenizer does not know have the embedding of an article, so that they do not
change the meaning of the words around them. (Of "bluebird", it knows "blue", and the rest counts
as an article.) CLIP's tokenizer splits them into letters.
"""

import collections
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import sentencepiece
from etils.epath import Path

from show1_jax.checkpoints.export import export_text_encoder
from show1_jax.checkpoints.layout import PARAMS
from show1_jax.checkpoints.networks import fresh_params
from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPText, CLIPTextConfig
from show1_jax.models.t5 import T5Config, T5Encoder
from show1_jax.stages import STAGES, Stage

T5 = T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
CLIP = CLIPTextConfig(width=32, ff_width=64, num_layers=2, num_heads=4)
MIXING = 0.5  # of the usual scale of what attention adds
END_OF_WORD = "</w>"
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
ARTICLE = "the"
MAX_WORDS = 8_192


def words(captions: Iterable[str]) -> list[str]:
    """Returns the most frequent words of captions, sorted."""
    counts: collections.Counter[str] = collections.Counter()
    for caption in captions:
        counts.update(WORD.findall(caption.lower()))
    # Of equally frequent words those that come first by letter, whatever the order of captions.
    return sorted(sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS])


def t5_files(words: Sequence[str]) -> dict[str, bytes]:
    """Makes a SentencePiece model with a piece for each word; returns the tokenizer's files."""
    model = io.BytesIO()
    pieces = [f"\u2581{word}" for word in sorted({ARTICLE, *words})]
    sentencepiece.SentencePieceTrainer.train(
        # Learns a piece for the comma, and one for a space.
        sentence_iterator=iter([f"{ARTICLE}, {ARTICLE}"]),
        model_writer=model,
        model_type="unigram",
        vocab_size=len(pieces) + 256,
        hard_vocab_limit=False,
        user_defined_symbols=pieces,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        num_threads=1,
        minloglevel=2,
    )
    settings = {
        "eos_token": "</s>",
        "extra_ids": 0,
        "model_max_length": 77,
        "pad_token": "<pad>",
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }
    return {"spiece.model": model.getvalue(), "tokenizer_config.json": _json(settings)}


def clip_files(words: Sequence[str]) -> dict[str, bytes]:
    """Makes byte pairs of which each word becomes one token; returns the tokenizer's files."""
    ranks: dict[tuple[str, str], int] = {}
    # Its rule for words splits off all that is no letter; others than these are several bytes.
    for word in sorted(set(re.findall("[a-z]+", " ".join(words)))):
        parts = _merged([*word[:-1], word[-1] + END_OF_WORD], ranks)
        for place in range(1, len(parts)):
            ranks["".join(parts[:place]), parts[place]] = len(ranks)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + place) for place in range(len(others)))]
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, ranks)]
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {token: place for place, token in enumerate([*tokens, start, end])}
    settings = {
        "bos_token": start,
        "eos_token": end,
        "model_max_length": 77,
        "pad_token": "!",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": end,
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in ranks)]
    return {
        "merges.txt": "\n".join(lines).encode() + b"\n",
        "tokenizer_config.json": _json(settings),
        "vocab.json": _json(vocabulary),
    }


def _merged(parts: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Merges neighbours as the tokenizer does: the pair of the lowest rank comes first."""
    while found := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
        first = min(found, key=ranks.__getitem__)
        place = list(itertools.pairwise(parts)).index(first)
        parts = [*parts[:place], "".join(first), *parts[place + 2 :]]
    return parts


def make(checkpoint: Path, captions: Iterable[str]) -> None:
    """Writes the encoders and tokenizers that a checkpoint lacks.

    Raises:
      InputError: if they cannot be written, or the checkpoint has a T5 that does not know all
        words of the captions.
    """
    found = words(captions)
    if not _has(checkpoint, "t5", "spiece.model"):
        _make_t5(checkpoint, found)
    elif unknown := _unknown(checkpoint, found):
        raise InputError(
            f"{checkpoint} has a T5 encoder that does not know {unknown[0]!r} and other words of "
            "the captions; give another --workdir"
        )
    if not _has(checkpoint, "clip", "vocab.json"):
        _make_clip(checkpoint, found)


def _has(checkpoint: Path, encoder: str, vocabulary: str) -> bool:
    """Whether a checkpoint has an encoder and its tokenizer; both are written whole or not."""
    folder = checkpoint / _stage(encoder).folder
    parts = (folder / "text_encoder" / PARAMS, folder / "tokenizer" / vocabulary)
    return all(part.exists() for part in parts)


def _unknown(checkpoint: Path, words: Sequence[str]) -> list[str]:
    """The words of captions that a checkpoint's T5 does not know."""
    path = checkpoint / _stage("t5").folder / "tokenizer" / "spiece.model"
    pieces = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    return [word for word in words if pieces.piece_to_id(f"\u2581{word}") == pieces.unk_id()]


def _make_t5(checkpoint: Path, words: Sequence[str]) -> None:
    files = t5_files(words)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=files["spiece.model"])
    t5 = T5Encoder(dataclasses.replace(T5, vocab_size=pieces.get_piece_size()))
    params = fresh_params(t5, jax.random.key(0))
    for number in range(T5.num_layers):
        # So that a word's embedding depends little on the words around it.
        output = params[f"block_{number}"]["attention"]["to_out"]
        output["kernel"] = output["kernel"] * MIXING
    rows = params["token_embedding"]["embedding"]
    article = rows[pieces.piece_to_id(f"\u2581{ARTICLE}")]
    params["token_embedding"]["embedding"] = rows.at[pieces.unk_id()].set(article)
    export_text_encoder(checkpoint, _stage("t5").name, t5, params, files)


def _make_clip(checkpoint: Path, words: Sequence[str]) -> None:
    files = clip_files(words)
    size = len(json.loads(files["vocab.json"]))
    clip = CLIPText(dataclasses.replace(CLIP, vocab_size=size))
    params = fresh_params(clip, jax.random.key(1))
    export_text_encoder(checkpoint, _stage("clip").name, clip, params, files)


def _stage(encoder: str) -> type[Stage]:
    """The first stage with a text encoder of this kind, whose folder has it."""
    return next(stage for stage in STAGES if stage.encoder == encoder)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
