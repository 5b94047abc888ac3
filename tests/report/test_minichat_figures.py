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


def test_figures_are_drawn_also_where_nothing_is_held_out():
    met, unmet = met_and_unmet()
    for rows in ([answer(met, "", met)], [answer(met, "", met), answer(None, None, unmet)]):
        for figure in (minichat_figures.scene_bars({"end_to_end": {0: rows, 1: rows}}, "smoke"),
                       minichat_figures.causes_figure({"end_to_end": {0: rows}, "divter": {0: rows}}, "smoke")):
            figure.to_bytes("png")
            assert "profile smoke" in figure.alternative_text()
    minichat_figures.triple_map([("car", "red", "beach")] * 3, "title", "note").to_bytes("png")
