import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn
from e2e_lib.report import plots as show
from e2e_lib.repro.results import published

NASTY = '<script>alert("1 & 2")</script> | $a$ `x`'


class Words(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags = "", set()
        self.feed(page)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)


def red(_):
    return Image.new("RGB", (64, 64), "red")


CHAT = Dialogue(f"chat {NASTY}", (Turn(0, NASTY), Turn(1, "", SharedPhoto("p", NASTY)), Turn(1, "two\nlines")))


def test_chats_escape_what_people_wrote():
    page = Words(show.chats_html([CHAT], red))
    assert page.tags == {"div", "p", "b", "i", "img", "br"}
    assert page.text.count(NASTY) == 3  # id, text and caption, as they were written


def test_a_chat_holds_its_photo():
    data = re.search(r'src="data:image/png;base64,([^"]+)"', show.chat_html(CHAT, red))
    import base64
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as image:
        assert image.size == (64, 64) and image.getpixel((0, 0)) == (255, 0, 0)


def test_tokens_are_escaped_and_counted():
    page = Words(show.tokens_html({"a <b>": ["<s>", "▁x"]}, {"a <b>": [False, True]}))
    assert page.tags == {"p", "b", "br", "code"} and "a <b> (2 tokens)" in page.text and "<s> ▁x" in page.text


def test_chat_figure_puts_me_on_the_right_and_photos_at_full_size():
    figure = show.chat_figure(CHAT.turns, red, me=0)
    places = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert places["you"][0] > 3.5 > places["partner"][0]
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert right - left == pytest.approx(bottom - top) and figure.axes[0].images[0].get_interpolation() == "nearest"
    assert figure.to_bytes("png") == show.chat_figure(CHAT.turns, red, me=0).to_bytes("png")


def test_bubbles_do_not_overlap():
    turns = [Turn(i % 2, "word " * (3 + 7 * i), SharedPhoto("p", "caption " * 9) if i % 3 == 0 else None) for i in range(7)]
    figure = show.chat_figure(turns, red)
    edges = [(patch.get_y() - 0.08, patch.get_y() + patch.get_height() + 0.08) for patch in figure.axes[0].patches]
    assert all(one[1] < two[0] for one, two in zip(edges, edges[1:], strict=False)) and edges[-1][1] < figure.get_figheight()


@pytest.mark.parametrize("images", [[], [None], [red(0)] * 7])
def test_photo_grids_of_any_size(images):
    figure = show.photo_grid(images, ["a $5 title"] * len(images), columns=3, note="N = some")
    with Image.open(io.BytesIO(figure.to_bytes("png"))) as image:
        assert image.width > 300
    said = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert said == (["nothing to show"] if not images else ["no photo"] * images.count(None))
    assert np.sum([bool(ax.get_title()) for ax in figure.axes]) == len(images)


def test_tables_escape_and_align():
    lines = show.table(["name", "n"], [[NASTY, 1234], ["b", None]]).splitlines()
    assert lines[1] == "| :-- | --: |" and lines[2].endswith("| 1,234 |") and lines[3] == "| b | – |"
    assert "<script>" not in lines[2] and r"\|" in lines[2]


def test_the_papers_numbers_keep_their_digits():
    table = show.published_table(published(2))
    assert "| 12.08 | 2.94 | 11.00 | 14.47 ± 0.94 | 75.88 |" in table and "262.09" in table
    assert "| 15.8 ± 0.6 | 29.16 |" in table
    assert "| PhotoChat | train | 10,286 | 130,459 |" in show.published_table(published(1))


def test_our_table_and_the_papers_never_share_a_row():
    summary = {"profile": "mini", "systems": {"end_to_end": {"bleu1": {"mean": 33.25, "std": 0.5, "n": 3}}}, "test": {"examples": 9}}
    page = show.table2_markdown(summary, published(2))
    ours = [line for line in page.splitlines() if "33.25 ± 0.50" in line]
    assert len(ours) == 1 and not re.search("12.08|10.65", ours[0])
    assert "| FID* | – | lower |" in page and "N: 9 examples" in page and "3 seeds" in page and "profile mini" in page


def test_one_seed_has_no_spread():
    summary = {"profile": "smoke", "systems": {"end_to_end": {"bleu1": {"mean": 1.0, "std": None, "n": 1}}}, "test": {}}
    table = show.scores_table(summary)
    assert "| BLEU-1 | 1.000 | higher |" in table and "1 seed;" in table


def test_systems_stand_side_by_side_in_the_papers_order():
    score = {"bleu1": {"mean": 1.0, "std": None, "n": 1}}
    table = show.scores_table({"profile": "smoke", "systems": {"end_to_end": score, "divter": score}, "test": {}})
    assert table.startswith("| metric | Divter | End-to-end | better | what it is |")
