"""The survey of two vocabularies against counting by hand, and against known figures of the real ones where they are at hand."""

import gzip
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from small_tokenizers import TEXTS, tokenizer

from e2e_lib.bridge.vocabulary import normalized_tokens
from e2e_lib.experiments.vocabularies import (
    PACKAGED,
    first_of,
    load_tokenizer,
    read_captions,
    survey,
    tokenizer_hash,
)
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.results import ResultsError, write_vocabularies

SHARED = Path(__file__).parents[3] / "shared"


def test_the_counts_are_those_of_plain_loops():
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    # A caption that begins with a bare mark is left out: its tokenizer says that the mark covers the first letter.
    captions = [text for text in sorted(set(TEXTS)) if len(source.tokenize(text)[0]) > 1]
    found = survey(source, target, captions)
    looks, theirs = normalized_tokens(source), normalized_tokens(target)
    tokens = kept = known = pairs = word_pairs = 0
    for caption in captions:
        a, b = source(caption, add_special_tokens=False)["input_ids"], target(caption, add_special_tokens=False)["input_ids"]
        present = {theirs[j] for j in b}
        tokens += len(a)
        kept += sum(looks[i] in present for i in a if looks[i])
        known += sum(looks[i] in theirs for i in a if looks[i])
        pairs += len(set(a)) * len(set(b))
        for word in caption.split():
            # One blank between words, and both tokenizers cut there: words can be cut alone. A bare mark of a beginning is no part of a word.
            pieces = [{i for i in side(word, add_special_tokens=False)["input_ids"] if normalized_tokens(side)[i]} for side in (source, target)]
            word_pairs += len(pieces[0]) * len(pieces[1])
    size = len(source) * len(target)
    assert found["static"]["lost"] == pytest.approx(1 - kept / tokens)
    assert found["static"]["caption_tokens"] == pytest.approx(known / tokens)
    assert found["density"]["sentence"] == pytest.approx(pairs / len(captions) / size)
    assert found["density"]["word"] == pytest.approx(word_pairs / len(captions) / size)
    words = [word for caption in captions for word in caption.split()]
    assert found["words"]["target_tokens_per_word"] == pytest.approx(
        sum(len(target(w, add_special_tokens=False)["input_ids"]) for w in words) / len(words))
    assert 0 < found["characters"]["same_span"] < 1 and found["characters"]["touching_none"] == 0


def test_two_equal_vocabularies_lose_nothing():
    source = tokenizer("byte_level")
    found = survey(source, source, ["the cat and the dog"])
    assert found["static"]["lost"] == 0 and found["characters"] == {"same_span": 1, "source_tokens_touched": 1, "touching_none": 0}


def test_a_tokenizers_hash_does_not_depend_on_its_last_use():
    source = tokenizer("clip")
    before = tokenizer_hash(source)
    source(["a", "a b c"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(source) == before != tokenizer_hash(tokenizer("byte_level"))


@pytest.mark.parametrize(("content", "expected"), [
    ("a dog\n\n b cat \n", ["a dog", "b cat"]), ('{"caption": " a dog"}\n{"captions": ["x", "y "]}', ["a dog", "x", "y"])])
def test_captions_are_read_from_lines_or_json(tmp_path, content, expected):
    (tmp_path / "c").write_text(content)
    assert read_captions(tmp_path / "c") == expected


@pytest.mark.parametrize("line", ['{"text": "a"}', '{"caption": 3}', '{"caption"'])
def test_a_line_that_holds_no_caption_is_named(tmp_path, line):
    (tmp_path / "c").write_text(f"fine\n{line}\n")
    with pytest.raises(ValueError, match=r"c, line 2: expected a caption"):
        read_captions(tmp_path / "c")


def test_clips_own_file_makes_clips_tokenizer(tmp_path, monkeypatch):
    """A package that ships CLIP's file of merges; ids as CLIP counts them: bytes, bytes that end a word, merges, marks."""
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "__init__.py").write_text("raise ImportError('it must be found, not imported')")
    with gzip.open(tmp_path / "clip" / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as file:
        file.write("# a heading\nd o\ndo g</w>\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    made = load_tokenizer("pip:openai-clip")
    assert len(made) == 512 + 2 + 2 and made.model_max_length == 77
    assert made("Dog do!")["input_ids"] == [514, 513, *made.convert_tokens_to_ids(["d", "o</w>", "!</w>"]), 515]
    assert (made.convert_tokens_to_ids("!"), made.convert_tokens_to_ids("!</w>")) == (0, 256)


def test_the_packaged_vocabularies_are_the_real_ones():
    spm = pytest.importorskip("sentencepiece")
    if not all(importlib.util.find_spec(package) for package, _ in PACKAGED.values()):
        pytest.skip("the optional extra 'vocabularies' is not installed")
    source, target = load_tokenizer("pip:mistral-common"), load_tokenizer("pip:openai-clip")
    assert (len(source), len(target)) == (32000, 49408)
    package, name = PACKAGED["pip:mistral-common"]
    reference = spm.SentencePieceProcessor(model_file=str(Path(importlib.util.find_spec(package).submodule_search_locations[0]) / name))
    for text in ("Hello world", "a naïve café 🙂 1234", "new\nline"):
        assert source(text, add_special_tokens=False)["input_ids"] == reference.encode(text)
    if SHARED.is_dir():
        assert target.get_vocab() == load_tokenizer(str(SHARED / "tokenizers" / "clip")).get_vocab()


def test_a_package_that_is_missing_is_named_and_the_next_source_is_taken(tmp_path, monkeypatch):
    monkeypatch.setitem(PACKAGED, "pip:nothing", ("no_such_package_here", "x"))
    with pytest.raises(CheckpointError, match=r"pip:nothing is not installed; .*\[vocabularies\]"):
        load_tokenizer("pip:nothing")
    tokenizer("clip").save_pretrained(tmp_path / "t")
    assert first_of(["pip:nothing", str(tmp_path / "t")])[0] == str(tmp_path / "t")
    with pytest.raises(CheckpointError, match="pip:nothing"):
        first_of([str(tmp_path / "none"), "pip:nothing"])


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="no captions"):
        survey(tokenizer("clip"), tokenizer("clip"), [])
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer("nobody/nothing-of-that-name")
    with pytest.raises(ResultsError, match="name '../x'"):
        write_vocabularies("../x", {}, tmp_path)
    with pytest.raises(ValueError, match="none.txt: cannot be read"):
        read_captions(tmp_path / "none.txt")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real vocabularies are not at hand")
def test_llama_2_and_clip_disagree_as_is_known():
    source, target = (load_tokenizer(str(SHARED / "tokenizers" / name)) for name in ("llama-2", "clip"))
    found = survey(source, target, read_captions(SHARED / "data" / "coco_mini" / "captions.jsonl"))
    assert (len(source), len(target)) == (32000, 49408)
    assert found["static"]["vocabulary_tokens"] == pytest.approx(18643, abs=20)
    assert found["static"]["in_caption"] == pytest.approx(0.69, abs=0.02)
    assert found["tokens_per_caption"]["source"] == pytest.approx(13.8, abs=0.3) and found["tokens_per_caption"]["target"] == pytest.approx(11.5, abs=0.3)
    stored = json.loads((Path(__file__).parents[2] / "results" / "vocabularies" / "llama-2_clip.json").read_text())
    assert stored["static"] == pytest.approx(found["static"]) and stored["sha256"] == found["sha256"]
