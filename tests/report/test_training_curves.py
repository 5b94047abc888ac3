import pandas as pd
import pytest

from e2e_lib.report.training_curves import PANELS, curve_frame, curves, epoch_means


def log(seed, steps=8, images=True):
    """A log as training writes it, with made-up numbers."""
    lines = [{"kind": "step", "step": 10 * i, "epoch": i / 4, "text_loss": 2 - i / 8 + seed, "temperature": 1 - i / 8,
              "image_loss": 1.0 + seed if images else None, "gradient_language": 1.0, "gradient_perceptron": 0.0,
              "gradient_unet": 0.5, "gradient_language_from_image": 0.01 if images else None} for i in range(steps)]
    return lines + [{"kind": "dev", "epoch": e, "bleu2": 5.0 + e, "fid": None, "score": None, "n": 8} for e in (1, 2)]


def test_a_curve_has_every_seed_and_their_mean():
    frame = curve_frame({0: log(0), 1: log(1)}, "step", {"text_loss": "text"})
    assert len(frame) == 16 and set(frame.line) == {"text"}
    first = frame[frame.epoch == 0]
    assert first.value.tolist() == [2.0, 3.0] and first["mean"].tolist() == [2.5, 2.5]


def test_there_is_no_mean_where_a_seed_has_stopped():
    frame = curve_frame({0: log(0), 1: log(1, steps=4)}, "step", {"text_loss": "text", "image_loss": "image"})
    means = frame[(frame.line == "text") & (frame.seed == 0)].set_index("epoch")["mean"]
    assert means.notna().tolist() == [True] * 4 + [False] * 4


def test_values_that_were_not_logged_are_left_out():
    assert curve_frame({0: log(0, images=False)}, "step", {"image_loss": "image"}).empty
    assert curve_frame({0: log(0)}, "dev", {"fid": "FID", "bleu2": "BLEU-2"}).value.tolist() == [6.0, 7.0]


def test_an_epochs_mean_is_of_its_own_steps_and_stands_at_its_middle():
    frame = epoch_means(curve_frame({0: log(0), 1: log(1, steps=4)}, "step", {"text_loss": "text"}), 2)
    rows = frame[["seed", "epoch", "value"]].to_numpy().tolist()  # four steps an epoch: 2, 1.875, 1.75, 1.625, ...
    assert rows == [[0, 0.5, 1.8125], [0, 1.5, 1.3125], [1, 0.5, 2.8125]]
    assert frame["mean"].fillna(-1).tolist() == [2.3125, -1, 2.3125]


def test_the_same_examples_before_and_after_stand_at_both_ends():
    ends = pd.DataFrame([(seed, name, 2.0, after + seed) for seed in (0, 1) for name, after in (("text", 1.0), ("image", 3.0))],
                        columns=["seed", "loss", "before", "after"])
    figure = curves("losses", {0: log(0), 1: log(1)}, "smoke", ends)
    drawn = [next(line for line in ax.lines if line.get_marker() == "D") for ax in figure.axes]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in drawn] == [
        ([0, 2.0], [2.0, 1.5]), ([0, 2.0], [2.0, 3.5])]
    assert "the same dev examples" in figure.axes[0].get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("logs", [{0: log(0), 1: log(1)}, {0: log(0, images=False)}, {0: []}])
def test_every_figure_can_be_drawn_and_names_n_and_seeds(name, logs):
    figure = curves(name, logs, "smoke")
    figure.to_bytes("png")
    alternative = figure.alternative_text()
    assert all(title in alternative for title, _, _ in PANELS[name])
    n = "dev responses" if name == "dev" else "training steps"
    assert "profile smoke" in alternative and n in alternative and f"seeds {', '.join(map(str, logs))}"[-1:] in alternative
