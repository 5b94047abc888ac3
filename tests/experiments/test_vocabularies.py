"""The survey of two vocabularies against counting by hand, and against known figures of the real ones where they are at hand."""

import codecs
import copy
import gzip
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import TEXTS, tokenizer
from tokenizers import Regex
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerFast

from e2e_lib.bridge.vocabulary import normalized_tokens
from e2e_lib.config import ConfigError
from e2e_lib.experiments import vocabularies
from e2e_lib.experiments.vocabularies import (
    PACKAGED,
    compare,
    first_of,
    load_tokenizer,
    read_captions,
    survey,
    tokenizer_hash,
)
from e2e_lib.models.hub import ANSWER_SECONDS
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
    ("a dog\n\n b cat \n", ["a dog", "b cat"]), ('{"caption": " a dog"}\n{"captions": ["x", "y "]}', ["a dog", "x", "y"]),
    ('{"caption": "x", "captions": ["y"]}', ["x", "y"]), ('{"captions": []}\n[a kite] at the beach\n"quoted"', ["[a kite] at the beach", '"quoted"']),
    ('{"caption": "a\u2028red\x85kite"}\na\u2028dog', ["a\u2028red\x85kite", "a\u2028dog"])])  # no ends of lines but those of text editors
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_captions_are_read_from_lines_or_json_however_an_editor_wrote_them(tmp_path, content, expected, encoding, newline):
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (tmp_path / "c").write_bytes(mark + content.replace("\n", newline).encode(encoding))
    assert read_captions(tmp_path / "c") == expected


@pytest.mark.parametrize(("line", "problem"), [
    ('{"text": "a"}', 'neither in {"text": "a"}'), ('{"caption": 3}', '"caption": 3'), ('{"caption"', "JSON that cannot be read"), ("[" * 9999, None),
    ('{"captions": "a red kite"}', '"captions": "a red kite"'), ('{"captions": ["a", 3]}', '"captions": \\["a", 3\\]'), ('{"captions": null}', '"captions": null'),
    ('{"caption": ["a"]}', '"caption": \\["a"\\]'), ('["a", "b"]', 'a list: \\["a"'), ('{"caption": "\\ud83d"}', '"caption": number 0.*half a character')])
def test_a_line_that_holds_no_caption_is_named_with_its_field(tmp_path, line, problem):
    (tmp_path / "c").write_text(f"fine\n{line}\n")
    if problem is None:
        assert read_captions(tmp_path / "c") == ["fine", line]
        return
    with pytest.raises(ValueError, match=rf'c, line 2: expected a caption, or JSON with "caption" .*, got {problem}'):
        read_captions(tmp_path / "c")


@pytest.mark.parametrize("content", ["a red kite\n".encode("utf-16-le"), b"\xff\xd8\xff\xe0", "Über".encode("latin-1"), b"\xff\xfea"])
def test_a_file_that_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ValueError, match="c: .*save it as UTF-8"):
        read_captions(tmp_path / "c")


@pytest.mark.fuzz
@given(st.one_of(st.binary(max_size=40), st.lists(st.text(max_size=9) | st.dictionaries(
    st.sampled_from(["caption", "captions", "x"]), st.recursive(st.none() | st.text(max_size=5) | st.integers(), st.lists, max_leaves=4), max_size=2)
    .map(json.dumps), max_size=4).map(lambda lines: "\n".join(lines).encode())))
def test_any_file_is_read_or_refused(content):
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        try:
            assert all(isinstance(caption, str) and caption for caption in read_captions(Path(file.name)))
        except ValueError as error:
            assert str(error).startswith(file.name)


@pytest.mark.parametrize("hole", ["source", "target"])
def test_holes_in_a_vocabulary_are_no_words(hole):
    plain, captions = (tokenizer("sentencepiece"), tokenizer("clip")), ["the cat and the dog"]
    sides = list(plain)
    at = ["source", "target"].index(hole)
    described = json.loads(plain[at].backend_tokenizer.to_str())
    described["model"]["vocab"]["\x01"] = len(plain[at]) + 50
    sides[at] = PreTrainedTokenizerFast(tokenizer_object=type(plain[at].backend_tokenizer).from_str(json.dumps(described)),
                                        eos_token=plain[at].eos_token, pad_token=plain[at].pad_token)
    found, expected = survey(*sides, captions), survey(*plain, captions)
    assert found["static"]["lost"] == expected["static"]["lost"] and found["vocabulary"][hole] == expected["vocabulary"][hole] + 1


def test_a_tokenizer_that_makes_nothing_of_the_captions_is_named():
    nothing = copy.deepcopy(tokenizer("clip"))
    nothing.backend_tokenizer.normalizer = Replace(Regex("."), "")
    for sides, name in (((tokenizer("clip"), nothing), "target"), ((nothing, tokenizer("clip")), "source")):
        with pytest.raises(ValueError, match=f"the {name} tokenizer makes no tokens"):
            survey(*sides, ["a dog"])


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
    said = []
    assert first_of(["pip:nothing", str(tmp_path / "t")], said.append)[0] == str(tmp_path / "t")
    assert [line[:20] for line in said] == ["loading the tokenize", "not to be had: token", "loading the tokenize"]
    with pytest.raises(CheckpointError, match="^tokenizer: pip:nothing is not"):
        first_of([str(tmp_path / "none"), "pip:nothing"], said.append)


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_is_asked_once_and_what_was_downloaded_is_taken(monkeypatch, answers):
    asked = []

    class Session:
        def head(self, address, timeout):
            asked.append(timeout)
            if not answers:
                raise OSError("no network")

    def from_pretrained(source, **how):
        asked.append(how["local_files_only"])
        raise OSError("not there")

    monkeypatch.setattr("e2e_lib.models.hub.get_session", Session)
    monkeypatch.setattr(vocabularies.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError, match="could not load 'nobody/nothing'.*--source .or --target. pip:PACKAGE takes") as error:
        load_tokenizer("nobody/nothing")
    assert asked == [ANSWER_SECONDS, not answers] and "--set" not in str(error.value)


def test_the_command_says_what_it_tries_and_what_it_lacks_before_it_tries(tmp_path, monkeypatch):
    (tmp_path / "c").write_text("a red kite\n")
    for side in ("source", "target"):
        tokenizer("clip").save_pretrained(tmp_path / side)
        with pytest.raises(ConfigError, match="--name says what to call the result"):
            compare(tmp_path / "missing", *(str(tmp_path / side) if side == own else None for own in ("source", "target")), None, None)
    monkeypatch.chdir(tmp_path)
    said = []
    path = compare(tmp_path / "c", str(tmp_path / "source"), str(tmp_path / "target"), "two_clips", said.append)
    assert said[:3] == [f"loading the tokenizer {tmp_path}/source", f"loading the tokenizer {tmp_path}/target",
                        f"{tmp_path}/source beside {tmp_path}/target, on 1 captions"]
    assert json.loads(path.read_text())["static"]["lost"] == 0


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
