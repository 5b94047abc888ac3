import pytest

from e2e_lib.data.minichat.chats import HELD_OUT
from e2e_lib.data.minichat.scenes import ATTRIBUTES, PLACES
from e2e_lib.report import minichat_figures

SCENE = {"thing": "kite", "colour": "red", "place": "beach", "number": 1, "size": "big", "time": "day"}


def answer(drawn, caption, gold=SCENE):
    return {"scenes": [{"photo_id": "x", "gold": gold, "drawn": drawn, "named": None}], "captions": [caption] if caption else []}


@pytest.mark.parametrize(("drawn", "caption", "cause"), [
    (SCENE, "nothing of it", "right"),
    ({**SCENE, "thing": "car"}, "a red kite at the beach", "wrong drawing"),
    ({**SCENE, "thing": "car"}, "two red kites at the beach", "wrong drawing"),
    ({**SCENE, "thing": "car"}, "a red car at the beach", "wrong words"),
    (None, None, "no photo"),
])
def test_errors_are_blamed_on_words_or_drawing(drawn, caption, cause):
    row = answer(drawn, caption)
    assert minichat_figures.cause(row["scenes"][0], row["captions"], "thing") == cause


def test_a_longer_word_does_not_name_the_thing():
    ball = {**SCENE, "thing": "ball"}
    row = answer(SCENE, "a red balloon at the beach", ball)
    assert minichat_figures.cause(row["scenes"][0], row["captions"], "thing") == "wrong words"


def met_and_unmet():
    thing, colour, place = sorted(HELD_OUT)[0]
    unmet = {**SCENE, "thing": thing, "colour": colour, "place": place}
    return {**SCENE, "place": next(place for place in PLACES if ("kite", "red", place) not in HELD_OUT)}, unmet


def test_verdicts_separate_held_out_triples():
    met, unmet = met_and_unmet()
    rows = [answer(met, "", met), answer(None, None, met), answer({**unmet, "size": "small"}, "", unmet), {"scenes": []}]
    frame = minichat_figures.verdicts({"end_to_end": {0: rows}})
    assert len(frame) == 3 * len(ATTRIBUTES)
    shares = frame.groupby(["triple", "attribute"]).right.mean()
    assert (shares["met in training"] == 0.5).all()
    assert shares["held out"].to_dict() == {**dict.fromkeys(ATTRIBUTES, 1.0), "size": 0.0}
    assert frame[frame.attribute == "size"].cause.isna().all()


def test_causes_are_counted_over_seeds_in_the_order_of_systems():
    rows = [answer(SCENE, ""), answer({**SCENE, "thing": "car"}, "a kite"), answer(None, None)]
    table = minichat_figures.causes_table({"pipeline": {0: rows, 1: rows[:1]}, "divter": {0: rows[:2]}})
    assert table.to_dict("records") == [
        {"system": "Pipeline", "verdicts (N)": 12, "right": 8, "wrong words": 0, "wrong drawing": 1, "no photo": 3},
        {"system": "Divter", "verdicts (N)": 6, "right": 5, "wrong words": 0, "wrong drawing": 1, "no photo": 0}]


def test_bars_are_each_systems_own():
    """Of two systems each has a panel; counts are of one of them."""
    met, unmet = met_and_unmet()
    right, wrong = [answer(met, "", met), answer(unmet, "", unmet)], [answer(None, None, met), answer(unmet, "", unmet)]
    figure = minichat_figures.scene_bars({"end_to_end": {0: right}, "pipeline": {0: wrong}}, "smoke")
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == ["End-to-end\nthing, colour and place right: 1.00 met in training, 1.00 held out",
                      "Pipeline\nthing, colour and place right: 0.00 met in training, 1.00 held out"]
    heights = [[bar.get_height() for bar in ax.patches if bar.get_width() > 0.1] for ax in figure.axes]
    assert sorted({*heights[0]}) == [1.0] and sorted({*heights[1]}) == [0.0, 1.0] and len(heights[1]) == 2 * len(ATTRIBUTES)
    assert "N = 2 test photos per seed" in figure.alternative_text()


def test_causes_in_words_name_the_largest_shares():
    table = minichat_figures.causes_table({"pipeline": {0: [answer({**SCENE, "thing": "car"}, "a car")]},
                                           "divter": {0: [answer({**SCENE, "thing": "car"}, "a kite"), answer(SCENE, "")]}})
    assert minichat_figures.causes_in_words(table) == (
        "Of all verdicts, wrong words: Pipeline 33.3%, Divter 0.0% (most: Pipeline); "
        "wrong drawing: Pipeline 0.0%, Divter 16.7% (most: Divter).")


def test_figures_are_drawn_also_where_nothing_is_held_out():
    met, unmet = met_and_unmet()
    for rows in ([answer(met, "", met)], [answer(met, "", met), answer(None, None, unmet)]):
        for figure in (minichat_figures.scene_bars({"end_to_end": {0: rows, 1: rows}}, "smoke"),
                       minichat_figures.causes_figure({"end_to_end": {0: rows}, "divter": {0: rows}}, "smoke")):
            figure.to_bytes("png")
            assert "profile smoke" in figure.alternative_text()
    minichat_figures.triple_map([("car", "red", "beach")] * 3, "title", "note").to_bytes("png")
