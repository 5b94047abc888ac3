import base64
import io
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from PIL import Image

from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn
from e2e_lib.data.photo_input import PhotoError
from e2e_lib.report import plots

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


CHAT = Dialogue(f"chat {NASTY}", (Turn(0, NASTY), Turn(1, "", (SharedPhoto("p", NASTY),)), Turn(1, "two\nlines")))


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


def test_a_turn_shows_all_of_its_photos_in_order():
    colours = {"p": "red", "q": "blue"}
    turn = Turn(0, "these", (SharedPhoto("p", "one"), SharedPhoto("q", "two")))
    page = plots.chat_html([turn], lambda name: Image.new("RGB", (4, 4), colours[name]))
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255)]
    assert re.findall("“(.*?)”", page) == re.findall('alt="(.*?)"', page) == ["one", "two"]


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


def test_numbers_that_round_to_zero_have_no_sign():
    assert rows_of(plots.table(["x"], [[-0.0001], [-0.0006]]))[2:] == [["0.000"], ["-0.001"]]


def test_a_file_that_is_no_photo_is_named(tmp_path):
    (tmp_path / "0-0.png").write_bytes(b"no photo")
    with pytest.raises(PhotoError, match="0-0.png"):
        plots.photo_grid([tmp_path / "0-0.png"], ["title"])


def test_a_long_note_is_broken_into_lines_that_fit_the_figure():
    figure = plots.Figure(7, 3, " · ".join(["profile mini"] * 30))
    figure.to_bytes("png")
    assert figure._supxlabel.get_window_extent().width < 7 * 100 and "\n" not in figure.alternative_text()


def test_variants_have_the_colour_of_their_map():
    assert plots.style_of("end_to_end") == ("End-to-end", plots.BLUE)
    assert plots.style_of("aligned_gumbel_rao") == ("aligned gumbel rao", plots.MAP_STYLES["aligned"][1])
    assert plots.style_of("sentence") == ("sentence (Eq. 10)", plots.VERMILLION)
    assert plots.style_of("static_word")[1] == plots.BLUE and plots.style_of("no_noise")[1] == plots.PURPLE


def test_notebooks_keep_the_alternative_text_once_matplotlibs_own_display_is_awake():
    shell = InteractiveShell.instance()
    try:
        plots.quiet()
        select_figure_formats(shell, {"png"})  # as matplotlib's inline backend does when pyplot first draws
        figure = plots.Figure(3, 2, "N = some")
        plots.style_axes(figure.subplots(), "A title", "x", "y")
        assert shell.display_formatter.format(figure)[1] == {"image/png": {"alt": "A title · N = some"}}
    finally:
        InteractiveShell.clear_instance()
