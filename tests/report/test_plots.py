import base64
import io
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn
from e2e_lib.report import plots
from e2e_lib.repro.results import ResultsError

NASTY = '<script>alert("1 & 2")</script> | $a$ `x`'


class Page(HTMLParser):
    """The text of a page, its tags and the alternative texts of its photos."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.alternatives = "", set(), []
        self.feed(page)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.alternatives += [value for name, value in attributes if name == "alt"]


def red(_):
    return Image.new("RGB", (64, 64), "red")


CHAT = Dialogue(f"chat {NASTY}", (Turn(0, NASTY), Turn(1, "", SharedPhoto("p", NASTY)), Turn(1, "two\nlines")))


def test_chats_escape_what_people_wrote():
    page = Page(plots.chats_html([CHAT], red))
    assert page.tags == {"div", "p", "b", "i", "img", "br"}
    assert page.text.count(NASTY) == 3  # id, text and caption, as they were written
    assert page.alternatives == [NASTY]


def test_a_chat_contains_its_photo_and_its_names():
    page = plots.chat_html(CHAT.turns, red, names=("User", "Assistant"), note="N = 1")
    assert re.findall(r"<b>(\w+):</b>", page) == ["User", "Assistant", "Assistant"] and "N = 1" in page
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as image:
        assert image.size == (64, 64) and image.getpixel((0, 0)) == (255, 0, 0)


def test_tokens_are_escaped_and_counted():
    page = Page(plots.tokens_html({"a <b>": ["<s>", "▁x"]}, {"a <b>": [False, True]}))
    assert page.tags == {"p", "b", "br", "code"} and "a <b> (2 tokens)" in page.text and "<s> ▁x" in page.text


@pytest.mark.parametrize("images", [[], [None], [red(0)] * 7])
def test_photo_grids_of_any_size_have_every_photo_and_an_alternative_text(images):
    figure = plots.photo_grid(images, ["a $5 title"] * len(images), columns=3, heading="heading", note="N = some")
    assert len([ax for ax in figure.axes if ax.images]) == len(images)
    data, metadata = figure._repr_png_()
    with Image.open(io.BytesIO(data)) as image:
        assert image.width > 300
    assert "heading" in metadata["alt"] and "N = some" in metadata["alt"]


def test_the_same_figure_has_the_same_bytes():
    first, second = (plots.photo_grid([red(0)], ["title"]) for _ in range(2))
    assert all(first.to_bytes(kind) == second.to_bytes(kind) for kind in ("png", "pdf"))
    assert b"CreationDate" not in first.to_bytes("pdf")


def rows_of(page):
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in page.splitlines()]


def test_tables_escape_and_align():
    page = plots.table(["name", "n", "x"], [[NASTY, 1234, 0.5], ["b", None, float("nan")], [True, 2, 1234.5]])
    rows = rows_of(page)
    assert rows[2][1:] == ["1,234", "0.500"] and rows[3] == ["b", "–", "–"] and rows[4] == ["True", "2", "1,234.500"]
    assert re.fullmatch(r"\|:-+\|-+:\|-+:\|", page.splitlines()[1])
    assert "<script>" not in page and r"\|" in page


def test_a_note_is_below_the_table():
    page = plots.markdown(pd.DataFrame({"p": ["< 0.001"]}), "N = 3")
    assert "--:" in page.splitlines()[1] and "| &lt; 0.001 |" in page and page.endswith("|\n\nN = 3")


def test_results_are_shown_or_the_command_that_makes_them(tmp_path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "gradients.json").write_text('{"a": 1}')
    assert plots.if_measured("mini", "gradients", lambda content: content["a"], tmp_path) == 1
    missing = plots.if_measured("mini", "ablations", len, tmp_path)
    assert "`results/mini/ablations.json`" in missing and "`e2e ablate --profile mini`" in missing
    assert "`make bench`" in plots.if_measured("mini", "benchmarks", len, tmp_path)
    (tmp_path / "mini" / "gradients.json").write_text("{")
    with pytest.raises(ResultsError, match="damaged"):
        plots.if_measured("mini", "gradients", len, tmp_path)


def test_variants_have_the_colour_of_their_map():
    assert plots.style_of("end_to_end") == ("End-to-end", plots.BLUE)
    assert plots.style_of("span_gumbel_rao") == ("span gumbel rao", plots.GREEN)
    assert plots.style_of("sentence") == ("sentence (Eq. 10)", plots.VERMILLION)
    assert plots.style_of("static_word")[1] == plots.BLUE and plots.style_of("no_noise")[1] == plots.PURPLE
