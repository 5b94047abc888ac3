"""What the shipped parts do, and the recipe that made their generator, at two steps a stage."""

import json

import torch

from e2e_lib.config import SHIPPED, load
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.models.generator import load_generator
from e2e_lib.models.hub import WEIGHTS
from e2e_lib.pretraining.image import train_generator
from e2e_lib.pretraining.parts import draw_captions, scene_of
from e2e_lib.pretraining.vision import reading_accuracy


def test_the_shipped_generator_draws_everything_that_a_caption_tells():
    config, scenes = load("mini"), [scene_of("seen", i, 1) for i in range(24)]
    seen = reading_accuracy(load_scene_classifier(SHIPPED).read(draw_captions(load_generator(SHIPPED), config, scenes, detail=1.0)), scenes)
    assert min(seen.values()) > 0.85, seen  # by chance, a third of the times of day would be right


def test_the_generators_recipe_trains_in_three_stages_and_each_once(tmp_path):
    config, said = load("smoke"), []
    made = train_generator(config, tmp_path, WEIGHTS / "mini", said.append)
    stages = ("text_encoder", "generator", "light")
    assert [line.partition(":")[0] for line in said] == list(stages)
    assert all(json.loads((tmp_path / stage / "state.json").read_text())["step"] == 2 for stage in stages)
    # It draws with Stable Diffusion's schedule, which is the shipped one's, whatever a stage was trained with.
    assert torch.equal(made.scheduler.alphas_cumprod, load_generator(SHIPPED).scheduler.alphas_cumprod) and made.scheduler.alphas_cumprod[-1] > 0.004
    before = {name: tensor.clone() for name, tensor in made.unet.state_dict().items()}
    again = train_generator(config, tmp_path, WEIGHTS / "mini", said.append)
    assert len(said) == len(stages) and all(torch.equal(tensor, before[name]) for name, tensor in again.unet.state_dict().items())
