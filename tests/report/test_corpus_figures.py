"""Figures of corpora against counts of hand-made dialogues; titles say what the frames hold."""

import pytest

from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn
from e2e_lib.report import corpus_figures as figures


def chat(*turns):
    return Dialogue("d", tuple(Turn(*turn) for turn in turns))


CAT, DOGS = SharedPhoto("1", "A cat, the Cat's bed"), SharedPhoto("2", "two dogs and a $cat")
A = [chat((0, "one two three"), (1, ""), (0, "", (CAT,)), (1, "one")), chat((0, "", (DOGS,)))]
B = [chat((0, "a b"), (1, "c d e f"), (0, "a b c d e f", (CAT, DOGS)))]
CORPORA = {"first": A, "second": B}


def test_words_are_counted_of_turns_that_have_some():
    frame = figures.turn_frame(CORPORA)
    assert {name: sorted(group) for name, group in frame.groupby("corpus").words} == {"first": [1, 3], "second": [2, 4, 6]}


def test_places_run_from_the_first_turn_to_the_last():
    frame = figures.sharing_frame(CORPORA)
    assert list(frame.corpus) == ["first", "first", "second"] and list(frame.place) == [pytest.approx(2 / 3), 0, 1]


def test_a_word_counts_once_a_caption_and_small_ones_do_not():
    rows = figures.caption_frame(CORPORA, 9).to_dict("records")
    first = {row["word"]: row["share"] for row in rows if row["corpus"] == "first"}
    assert first == {"cat": 1.0, "bed": 0.5, "cat's": 0.5, "dogs": 0.5, "two": 0.5}
    assert list(first) == ["cat", "bed", "cat's", "dogs", "two"]
    assert len(figures.caption_frame(CORPORA, 2)) == 4


def test_titles_say_what_was_found():
    lengths, moments = figures.turn_lengths(CORPORA, "N = 3"), figures.sharing_moments(CORPORA, "N = 3")
    assert lengths.alternative_text() == "Half of the messages are no longer than 1 word in first, 4 words in second · N = 3"
    assert moments.alternative_text() == "Half of the photos have come by this point of the chat: 0% in first, 100% in second · N = 3"
    words = figures.caption_words(CORPORA, "N = 3", 4).alternative_text()
    assert "first: “cat” is in 100% of the captions" in words and "without small words" in words


VISITS = {"today": {"ok": 6, "missing": 2, "timeout": 3, "server_error": 1}, "tomorrow": {"ok": 9, "missing": 2, "timeout": 1}}


def test_the_addresses_title_counts_what_asking_again_brought():
    assert figures.address_finding({"today": VISITS["today"]}) == "6 of 12 addresses gave a photo"
    assert figures.address_finding(VISITS) == ("6 of 12 addresses gave a photo at once; asking 4 again that had failed "
                                               "for a passing reason brought 3 more")
    text = figures.address_figure(VISITS, "N = 12").alternative_text()
    assert text == f"{figures.address_finding(VISITS)} · N = 12"


def test_bars_have_the_counts_of_their_status():
    ax = figures.address_figure(VISITS, "").axes[0]
    labels = [label.get_text().partition(":")[0] for label in ax.get_yticklabels()]
    assert labels == ["ok", "missing", "timeout", "server_error"]
    assert [{labels[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in bars}
            for bars in ax.containers] == list(VISITS.values())


@pytest.mark.parametrize("make", [
    lambda: figures.turn_lengths({"none": []}, ""), lambda: figures.caption_words({"none": [], "some": A}, ""),
    lambda: figures.address_figure({"index": {}}, ""),
])
def test_where_there_is_nothing_the_figure_says_so(make):
    figure = make()
    assert figure.to_bytes("png")
    assert any(text.get_text().startswith(("nothing", "no ")) for ax in figure.axes for text in ax.texts)


def test_a_corpus_without_photos_has_no_line_and_no_share_in_the_title():
    figure = figures.sharing_moments({"none": [], "some": B}, "")
    assert figure.axes[0].get_title("left").endswith("100% in some")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["some"]
