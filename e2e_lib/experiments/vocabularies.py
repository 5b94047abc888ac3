"""How far two vocabularies disagree about captions (section 2.4.2: why a static map loses tokens)."""

import codecs
import gzip
import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer, LlamaTokenizer

from e2e_lib.bridge import vocabulary
from e2e_lib.bridge.alignment import (
    Encoding,
    check_texts,
    check_tokenizer,
    encode_with_offsets,
    overlap,
    word_spans,
)
from e2e_lib.config import ConfigError
from e2e_lib.experiments.evaluate import Echo
from e2e_lib.models.hub import LOADING, answers, unreachable
from e2e_lib.pretraining.tokenizers import clip_tokenizer
from e2e_lib.repro import results
from e2e_lib.repro.files import CheckpointError
from e2e_lib.versions import versions

CLIP_MERGES = 48_894  # CLIP's vocabulary is 512 bytes, its file's first merges, and two marks: 49,408
# Real vocabularies that pip installs (extra "vocabularies"), for machines that reach no model hub.
PACKAGED = {"pip:mistral-common": ("mistral_common", "data/tokenizer.model.v1"),
            "pip:openai-clip": ("clip", "bpe_simple_vocab_16e6.txt.gz")}
# What `compare` takes by default, the first of each that can be had, and their short names.
SOURCES = {"TinyLlama/TinyLlama-1.1B-Chat-v1.0": "llama-2", "pip:mistral-common": "mistral"}
TARGETS = {"openai/clip-vit-large-patch14": "clip", "pip:openai-clip": "clip"}
ADVICE = f"--source (or --target) pip:PACKAGE takes an installed one ({', '.join(PACKAGED)}), and FOLDER"


def compare(captions: Path, source: str | None, target: str | None, name: str | None, echo: Echo) -> Path:
    """Surveys two tokenizers, by default Llama's and CLIP's, into ``results/vocabularies/<name>.json``.
    Raises ConfigError for captions or tokenizers that cannot be compared, or with no name for the result."""
    if not name and (source and source not in SOURCES or target and target not in TARGETS):
        raise ConfigError("with --source or --target of your own, --name says what to call the result, such "
                          "as --name qwen_clip")
    try:
        texts = read_captions(captions)
        source, one = first_of([source] if source else list(SOURCES), echo)
        target, other = first_of([target] if target else list(TARGETS), echo)
        echo(f"{source} beside {target}, on {len(texts)} captions")
        comparison = survey(one, other, texts)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None
    path = results.write_vocabularies(name or f"{SOURCES[source]}_{TARGETS[target]}", comparison)
    echo(json.dumps(comparison, indent=1))
    return path


def load_tokenizer(source: str) -> Any:
    """A tokenizer from a folder, a hub id or a pip package (one of ``PACKAGED``).

    Where the hub does not answer, only what was downloaded before. Raises CheckpointError if it cannot be
    loaded, TypeError if it gives no character offsets."""
    folder = Path(source)
    try:
        if source in PACKAGED:
            tokenizer = _packaged(source)
        elif (folder / "merges.txt").is_file() and not (folder / "tokenizer.json").is_file():
            tokenizer = CLIPTokenizer.from_pretrained(source)  # CLIP's first release had no tokenizer.json
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                source, trust_remote_code=False, local_files_only=folder.is_dir() or not answers())
    except CheckpointError:
        raise
    except LOADING as error:
        raise unreachable("tokenizer", source, error, ADVICE) from None
    check_tokenizer(tokenizer, source)
    return tokenizer


def first_of(sources: Sequence[str], echo: Echo) -> tuple[str, Any]:
    """The first of ``sources`` that can be loaded, and its tokenizer; else the last one's CheckpointError.
    Says what it tries."""
    for source in sources[:-1]:
        echo(f"loading the tokenizer {source}")
        try:
            return source, load_tokenizer(source)
        except CheckpointError as error:
            echo(f"not to be had: {error}")
    echo(f"loading the tokenizer {sources[-1]}")
    return sources[-1], load_tokenizer(sources[-1])


def _packaged(source: str) -> Any:
    package, name = PACKAGED[source]
    spec = importlib.util.find_spec(package)  # not imported: the package may need libraries that are not here
    file = Path((spec and spec.submodule_search_locations or ["missing"])[0]) / name
    if not file.is_file():
        raise CheckpointError(f"tokenizer: {source} is not installed; `.venv/bin/pip install -e "
                              "'.[vocabularies]'` brings it, or name a folder or a hub id")
    if file.suffix == ".gz":
        merges = gzip.decompress(file.read_bytes()).decode().splitlines()[1:CLIP_MERGES + 1]
        return clip_tokenizer([tuple(merge.split()) for merge in merges], limit=77)
    with tempfile.TemporaryDirectory() as folder:  # transformers reads SentencePiece models from folders only
        shutil.copy(file, Path(folder) / "tokenizer.model")
        return LlamaTokenizer.from_pretrained(folder)


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's whole definition, so that numbers say which vocabulary they are about."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition["padding"] = definition["truncation"] = None  # left there by the last call
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def survey(source: Any, target: Any, captions: list[str]) -> dict[str, Any]:
    """What each vocabulary map keeps of two tokenizers on real captions, as shares unless said otherwise.

    ``static``: source tokens whose text is also a target token's, in the vocabulary (a count) and among the
    captions' tokens; "in_caption" where the caption's own target tokens have it, else "lost". ``density``:
    entries of the V1 × V2 matrix that are not 0. ``words``: tokens per word, and words of one token on both
    sides. ``characters``: target tokens with exactly one source token's characters, source tokens that one
    touches (a mean), and target tokens that touch none. Raises ValueError without captions, or where a
    tokenizer makes no tokens of them."""
    if not captions:
        raise ValueError("no captions to survey")
    (a, _), (b, _) = (encode_with_offsets(side, captions, special=False) for side in (source, target))
    a_count, b_count = int(a.token_mask.sum()), b.token_mask.sum()
    if not a_count or not b_count:
        raise ValueError(f"the {'target' if a_count else 'source'} tokenizer makes no tokens of the captions")
    words, real = word_spans(captions)
    a_words, b_words = ((overlap(words, side.spans) & side.token_mask[:, None]).sum(-1)[real].double()
                        for side in (a, b))  # tokens of each word
    touched = overlap(b.spans, a.spans) & b.token_mask[:, :, None] & a.token_mask[:, None]  # (N, L, C)
    # Tokenizers differ in whether a token's span includes the blank before it, so blanks are left out.
    a_spans, b_spans = _without_blanks(captions, a.spans), _without_blanks(captions, b.spans)
    equal = ((b_spans[:, :, None] == a_spans[:, None]).all(-1) & touched).any(-1)  # (N, L)
    return {
        "numbers": versions("gradients"),
        "captions": len(captions), "vocabulary": {"source": len(source), "target": len(target)},
        "tokens_per_caption": {"source": a_count / len(captions), "target": float(b_count / len(captions))},
        "static": _static_shares(source, target, a, b),
        "density": _densities(source, target, captions, a, b),
        "words": {"source_tokens_per_word": float(a_words.mean()),
                  "target_tokens_per_word": float(b_words.mean()),
                  "one_token_on_both_sides": float(((a_words == 1) & (b_words == 1)).double().mean())},
        "characters": {"same_span": float(equal.sum() / b_count),
                       "source_tokens_touched": float(touched.sum() / b_count),
                       "touching_none": float((~touched.any(-1) & b.token_mask).sum() / b_count)},
        "sha256": {"source": tokenizer_hash(source), "target": tokenizer_hash(target),
                   "captions": hashlib.sha256("\n".join(captions).encode()).hexdigest()}}


def _static_shares(source: Any, target: Any, a: Encoding, b: Encoding) -> dict[str, float]:
    texts, target_texts = vocabulary.normalized_tokens(source), vocabulary.normalized_tokens(target)
    number = {text: n for n, text in enumerate(set(texts) & set(target_texts) - {""}, 1)}
    a_text = torch.tensor([number.get(text, 0) for text in texts])[a.input_ids] * a.token_mask  # (N, C)
    b_text = torch.tensor([number.get(text, 0) for text in target_texts])[b.input_ids] * b.token_mask
    present = (a_text[:, :, None] == b_text[:, None]).any(-1) & (a_text > 0)  # (N, C)
    known, kept = (int(tokens.sum()) / int(a.token_mask.sum()) for tokens in (a_text > 0, present))
    return {"vocabulary_tokens": sum(text in number for text in texts), "caption_tokens": known,
            "in_caption": kept, "lost": 1 - kept}


def _densities(source: Any, target: Any, captions: list[str], a: Encoding, b: Encoding) -> dict[str, float]:
    entries, words = {}, {word for caption in captions for word in caption.split()}
    for name, static in (("static_piece", vocabulary.static_piece(source, target)),
                         ("static_word", vocabulary.static_word(source, target, words))):
        sides = (static.source_terms, static.target_terms)
        in_source, in_target = (terms.bincount(minlength=static.terms) for terms in sides)  # (K,)
        entries[name] = (in_source * in_target).sum().double()
    for name in vocabulary.DYNAMIC:
        factored = vocabulary.caption_map(name, captions, a, b, "mean")
        of_term = (factored.source.sum(-1) * factored.target.sum(-1)).double()  # (N, K)
        # The span map has one matrix per term, the others one per caption.
        entries[name] = (of_term[of_term > 0] if name == "span" else of_term.sum(1)).mean()
    return {name: float(number / (len(source) * len(target))) for name, number in entries.items()}


def _without_blanks(captions: list[str], spans: Tensor) -> Tensor:
    """Spans (N, n, 2) without the blanks at their beginning."""
    starts = [[last - len(caption[first:last].lstrip()) for first, last in row]
              for caption, row in zip(captions, spans.tolist(), strict=True)]
    return torch.stack([torch.tensor(starts), spans[..., 1]], -1)


def read_captions(path: Path) -> list[str]:
    """Captions of a text file, in UTF-8, or UTF-16 with its mark: one per line, or JSON lines with "caption"
    (a text) or "captions" (a list of texts). Lines without a caption are left out if they are empty; else
    ValueError names the line and what is wrong with it."""
    try:
        content = path.read_bytes()
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = content.decode("utf-16" if content.startswith(marks) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path}: holds bytes of zero, as no text in UTF-8 does; save it as UTF-8")
    captions: list[str] = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        try:
            captions += _captions_of(line.strip())
        except ValueError as error:
            raise ValueError(f'{path}, line {number}: expected a caption, or JSON with "caption" (text) or '
                             f'"captions" (a list of texts), got {error}') from None
    return [caption for caption in captions if caption]


def _captions_of(line: str) -> list[str]:
    """The captions of one line. Raises ValueError with what it holds instead."""
    row: Any = {"caption": line}
    try:
        row = json.loads(line) if line.startswith(("{", "[")) else row
    except (ValueError, RecursionError) as error:
        if line.startswith("{"):  # while a caption may well begin with another bracket
            raise ValueError(f"JSON that cannot be read ({error})") from None
    fields = [name for name in ("caption", "captions") if isinstance(row, dict) and name in row]
    if not fields:
        raise ValueError(f"a list: {line:.80}" if isinstance(row, list) else f"neither in {line:.80}")
    captions = []
    for name in fields:
        texts = row[name] if name == "captions" else [row[name]]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'"{name}": {json.dumps(row[name]):.80}')
        captions += [text.strip() for text in check_texts(f'"{name}"', texts)]
    return captions
