"""Missing photos are drawn as their model alone would draw each, once, and always told from fetched ones."""

import io
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import errors
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPTextModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from e2e_lib.config import SHIPPED, ConfigError
from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import PhotoIndex, PhotoRow, usable_photos
from e2e_lib.data.photos import PhotoStore, to_image
from e2e_lib.experiments import missing_photos as missing
from e2e_lib.experiments.missing_photos import Drawing, draw_missing, load_drawer
from e2e_lib.models.generator import load_generator
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import seed_of

CAPTIONS = {"train/a": "a red car", "b": "two cats at the beach", "url/c": "a boat", "d": None, "e": "a kite", "f": " \u200b"}
URLS = {"train/a": "https://h/a.jpg", "url/c": "", "e": "https://h/e.jpg"}


@pytest.fixture
def folder(tmp_path):
    """A built corpus's photos.jsonl, of whose six photos b was fetched, a is missing, c has no address and e was not asked for."""
    lines = [json.dumps({"photo_id": name, "url": URLS.get(name, f"https://h/{name}"), "caption": caption}) for name, caption in CAPTIONS.items()]
    (tmp_path / "photos.jsonl").write_text("\n".join(lines) + "\n")
    with PhotoIndex(tmp_path / "photos") as index:
        index.add([("https://h/e.jpg", "e")])
        for row in (PhotoRow("https://h/a.jpg", "train/a", "missing", "404"), PhotoRow("photo:url/c", "url/c", "bad_address", "no address"), fetched(index, "b")):
            index.put(row)
    return tmp_path


def fetched(index, name):
    (index.folder / "real.jpg").write_bytes(b"real")
    return PhotoRow(f"https://h/{name}", name, "ok", bytes=4, source="downloaded", file="real.jpg")


@pytest.fixture(scope="module")
def generator(weights):
    """What stands for MiniChat's generator, loaded once."""
    return load_generator(str(weights / "mini" / "generator"))


@pytest.fixture
def minichat(generator, monkeypatch):
    monkeypatch.setattr(missing, "load_generator", {SHIPPED: generator}.__getitem__)
    return Drawing("minichat", steps=2, batch_size=2)


@pytest.fixture(scope="module")
def parts(weights):
    """The parts of a tiny Stable Diffusion, with the noise of random weights for photos."""
    place = weights / "mini" / "generator"
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                        norm_num_groups=4, latent_channels=4)
    return {"vae": vae, "unet": UNet2DConditionModel.from_pretrained(place / "unet"), "tokenizer": AutoTokenizer.from_pretrained(place / "tokenizer"),
            "text_encoder": CLIPTextModel.from_pretrained(place / "text_encoder"), "scheduler": DDIMScheduler.from_pretrained(place / "scheduler")}


@pytest.fixture(scope="module")
def pipeline(parts, tmp_path_factory):
    """A folder with a whole pipeline, in the hub's layout."""
    folder = tmp_path_factory.mktemp("pipeline")
    StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False).save_pretrained(folder)
    return folder


def pixels(image):
    return np.asarray(image).astype(int)


def rows_of(folder):
    with PhotoIndex(folder / "photos") as index:
        return {row.photo_id: row for row in index.rows(["drawn"])}


def test_a_pipeline_draws_each_photo_as_it_would_alone_from_the_same_seed(parts, pipeline):
    alone = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    captions, seeds = ["a red car", "two cats at the beach, and a boat", ""], [7, 8, 2**63 - 1]
    drawn = load_drawer(Drawing(str(pipeline), steps=3, guidance_scale=3.0, size=32))(captions, seeds)
    for caption, seed, photo in zip(captions, seeds, drawn, strict=True):
        rng = torch.Generator().manual_seed(seed)
        (expected,) = alone(caption, num_inference_steps=3, guidance_scale=3.0, height=32, width=32, generator=rng).images
        assert photo.size == (32, 32) and pixels(photo).std() > 10 and abs(pixels(photo) - pixels(expected)).max() <= 1
    other = load_drawer(Drawing(str(pipeline), steps=3, size=32))(captions[:1], [8])[0]
    assert abs(pixels(other) - pixels(drawn[0])).mean() > 5


def test_minichats_generator_draws_by_the_same_command(folder, minichat, generator):
    made = draw_missing(folder, minichat, lambda _: None)
    assert (made["photos"], made["drawn"], made["already_there"], made["drawn_before"], made["without_caption"], made["refused"]) == (6, 3, 1, 0, 2, 0)
    store = PhotoStore(folder / "photos")
    for name, row in rows_of(folder).items():
        rng = torch.Generator().manual_seed(seed_of(0, name))
        expected = io.BytesIO()
        to_image(generator.draw([CAPTIONS[name]], rng, num_inference_steps=2, guidance_scale=2.0)[0]).save(expected, "JPEG", quality=95)
        assert pixels(store.load(name)).tolist() == pixels(Image.open(expected)).tolist() and store.is_drawn(name)
        assert row == PhotoRow(f"photo:{name}", name, "drawn", "drawn by minichat, seed 0, steps 2", row.sha256, 64, 64, row.bytes, "drawn", file=row.file)
        assert row.file == f"{row.sha256[:2]}/{row.sha256}.jpg" and files.sha256(store.path(name)) == row.sha256
    assert sorted(rows_of(folder)) == ["e", "train/a", "url/c"]


def test_the_index_still_says_why_a_photo_was_not_fetched_and_a_later_fetch_wins(folder, minichat):
    draw_missing(folder, minichat, lambda _: None)
    with PhotoIndex(folder / "photos") as index:
        assert index.counts() == {"drawn": 3, "missing": 1, "ok": 1, "pending": 1} and index.find("train/a").status == "drawn"
        assert next(index.rows(["missing"])) == PhotoRow("https://h/a.jpg", "train/a", "missing", "404")
        index.put(replace(fetched(index, "train/a"), url="https://h/a.jpg"))
        assert index.find("train/a").status == "ok"
    assert usable_photos(folder / "photos")["train/a"].status == "ok" and not PhotoStore(folder / "photos").is_drawn("train/a")
    again = draw_missing(folder, minichat, lambda _: None)
    assert (again["already_there"], again["drawn_before"], again["drawn"]) == (4, 2, 0)


def test_a_run_cut_off_anywhere_goes_on_and_ends_with_the_same_photos(folder, minichat, monkeypatch, tmp_path_factory):
    other = shutil.copytree(folder, tmp_path_factory.mktemp("whole") / "corpus")
    draw_missing(other, replace(minichat, batch_size=3), lambda _: None)
    whole = {name: row.sha256 for name, row in rows_of(other).items()}
    for at, place, name in ((1, PhotoIndex, "put"), (2, PhotoIndex, "put"), (1, missing, "write_once")):
        calls, function, before = [], getattr(place, name), len(rows_of(folder))

        def cut_off(*arguments, calls=calls, at=at, function=function):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, cut_off)
            with pytest.raises(KeyboardInterrupt):
                draw_missing(folder, minichat, lambda _: None)
        assert len(rows_of(folder)) == before + at - 1
    assert draw_missing(folder, minichat, lambda _: None)["drawn"] == 2
    assert {name: row.sha256 for name, row in rows_of(folder).items()} == whole


def test_nothing_is_loaded_where_nothing_is_to_be_drawn_and_what_was_never_asked_for_is_said(folder, minichat):
    said = []
    draw_missing(folder, minichat, said.append)
    assert "1 of the 3 photos to draw were never asked for: `e2e data photos`" in said[0]
    assert draw_missing(folder, Drawing("nobody/nothing"), said.append)["already_there"] == 4 and len(said) == 1


def test_a_drawn_photo_whose_file_is_gone_is_drawn_again_and_a_fetched_one_counted(folder, minichat):
    draw_missing(folder, minichat, lambda _: None)
    store = PhotoStore(folder / "photos")
    store.path("e").write_bytes(store.path("e").read_bytes()[:50])
    store.path("url/c").unlink()
    store.path("b").unlink()
    made = draw_missing(folder, minichat, lambda _: None)
    assert (made["drawn"], made["lost"], made["already_there"]) == (2, 1, 1) and store.load("e").size == (64, 64)
    said = " ".join(missing.report_lines(made))
    assert "2 drawn now by minichat with seed 0" in said and "--retry ok" in said and "2 have no caption" in said and "1 of them drawn" in said


def test_what_the_models_own_safety_checker_refuses_is_counted_and_not_kept(folder, parts, tmp_path):
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config={**tower, "image_size": 32, "patch_size": 16}, text_config=tower, projection_dim=8))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2)  # no picture is as little like any concept as that
    place = tmp_path / "checked"
    StableDiffusionPipeline(**parts, safety_checker=checker, feature_extractor=CLIPImageProcessorPil(size=32, crop_size=32)).save_pretrained(place)
    made = draw_missing(folder, Drawing(str(place), steps=1, size=16), lambda _: None)
    assert (made["drawn"], made["refused"], rows_of(folder)) == (0, 3, {})
    assert "3 were refused by the model's safety checker" in " ".join(missing.report_lines(made))
    assert not list((folder / "photos").glob("*/*"))


def of_hub(kind):
    """A hub with that fault."""
    def fail(*_, **__):
        raise kind("fault", response=SimpleNamespace(headers={}, request=None)) if issubclass(kind, errors.HfHubHTTPError) else kind("fault")
    return fail


@pytest.mark.parametrize("kind, message", [
    (errors.GatedRepoError, "gated: accept its licence"), (errors.RepositoryNotFoundError, "misspelt, withdrawn"),
    (errors.LocalEntryNotFoundError, "offline.*--model FOLDER"), (errors.OfflineModeIsEnabled, "offline.*--model FOLDER"),
    (errors.RemoteEntryNotFoundError, "it is no text-to-image pipeline of diffusers .*model_index.json")])
def test_a_model_that_the_hub_does_not_give_is_a_sentence_of_its_own(kind, message, folder, monkeypatch):
    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", of_hub(kind))
    with pytest.raises(CheckpointError, match=f"--model.*nobody/nothing.*{message}"):
        draw_missing(folder, Drawing("nobody/nothing"), lambda _: None)
    assert not rows_of(folder)


def without_index(place):
    (place / "model_index.json").unlink()


def other_pipeline(place):
    (place / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))


def pickled(place):
    torch.save({}, place / "unet" / "diffusion_pytorch_model.bin")
    (place / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def strangers_code(place):
    index = json.loads((place / "model_index.json").read_text())
    (place / "unet" / "own_unet.py").write_text("raise SystemExit('it ran')")
    (place / "model_index.json").write_text(json.dumps(index | {"unet": ["own_unet", "OwnUNet"]}))


@pytest.mark.parametrize("change, message", [
    (without_index, "it is no text-to-image pipeline of diffusers .there is no model_index.json"),
    (other_pipeline, "it is no text-to-image pipeline of diffusers .*DDPM"),
    (pickled, "could not load .*safetensors"), (strangers_code, "could not load .*")])
def test_a_folder_that_is_no_safe_text_to_image_pipeline_is_refused(change, message, folder, pipeline, tmp_path):
    place = shutil.copytree(pipeline, tmp_path / "changed")
    change(place)
    with pytest.raises(CheckpointError, match=message):
        draw_missing(folder, Drawing(str(place)), lambda _: None)


def test_what_a_model_does_not_take_or_draw_is_said(folder, pipeline, minichat, monkeypatch):
    with pytest.raises(CheckpointError, match="could not draw .*divisible by 8"):
        draw_missing(folder, Drawing(str(pipeline), steps=1, size=20), lambda _: None)
    with pytest.raises(ConfigError, match="--size 20: minichat draws 64 pixels only"):
        load_drawer(Drawing("minichat", size=20))
    with pytest.raises(ConfigError, match="--steps 1000: too many for minichat"):
        load_drawer(Drawing("minichat", steps=1000))
    with pytest.raises(CheckpointError, match="there is no folder ./absent"):
        load_drawer(Drawing("./absent"))
    drawer = load_drawer(Drawing(str(pipeline), steps=1, size=16))
    for fault, message in ((torch.OutOfMemoryError("x"), "a smaller --batch-size than 4"), (KeyError("x"), "could not draw .KeyError")):
        def fail(*_, fault=fault, **__):
            raise fault
        drawer.pipeline = fail
        with pytest.raises(CheckpointError, match=message):
            drawer(["a"], [1])
    drawer.pipeline = lambda *_, **__: SimpleNamespace(images=np.full((1, 4, 4, 3), np.nan, np.float32))
    with pytest.raises(CheckpointError, match="what it drew in torch.float32 is no photo"):
        drawer(["a"], [1])
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", lambda self, prompt, generator, height, width, output_type: None)
    with pytest.raises(ConfigError, match="--steps: .*a StableDiffusionPipeline, takes no num_inference_steps; leave the option out"):
        load_drawer(Drawing(str(pipeline), steps=1))


@pytest.mark.parametrize("line, message", [
    (b"{}", "row 2: .*photo_id"), (b'{"photo_id": "x", "caption": 7}', "row 2: .*caption"), (b"\xff", "row 2"), (b'{"photo_id": "\\ud800"}', "row 2")])
def test_a_row_of_the_list_that_cannot_be_read_is_named(line, message, tmp_path):
    (tmp_path / "photos.jsonl").write_bytes(b'{"photo_id": "w"}\n' + line)
    with pytest.raises(DataError, match=message):
        draw_missing(tmp_path, Drawing("minichat"), lambda _: None)
    (tmp_path / "photos.jsonl").unlink()
    with pytest.raises(files.ResultsError, match="photos.jsonl: no such file .*`e2e data build`"):
        draw_missing(tmp_path, Drawing("minichat"), lambda _: None)
