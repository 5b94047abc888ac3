"""The three systems that the paper compares (section 3.1.4), made of the parts that a configuration names."""

from typing import Any

from transformers import GPT2LMHeadModel

from e2e_lib.config import Config, ConfigError
from e2e_lib.models.captioner import load_captioner
from e2e_lib.models.end_to_end import EndToEndModel
from e2e_lib.models.generator import load_generator
from e2e_lib.models.language import load_language
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.models.pipeline import Pipeline
from e2e_lib.models.translator import load_translator

System = EndToEndModel | Pipeline


def build(config: Config) -> Any:  # a System; whoever asks knows which
    """The system of a configuration, from its pretrained parts. Raises CheckpointError when one is missing or damaged, and ConfigError where
    two do not belong together, or the language model cannot read as much as is asked of it."""
    parts, context = config.model, config.data.max_context
    language, tokenizer = load_language(parts.dialogue, "dialogue", GPT2LMHeadModel) if parts.system == "divter" else load_language(parts.language)
    longest, positions = context + config.inference.max_new_tokens, language.config.max_position_embeddings
    if longest > positions:
        raise ConfigError(f"data.max_context = {context} and inference.max_new_tokens = {config.inference.max_new_tokens} make {longest} tokens, "
                          f"but the language model reads {positions} at most: --set data.max_context={positions - config.inference.max_new_tokens}")
    if parts.system == "divter":
        return Pipeline(language, tokenizer, load_captioner(parts.captioner), load_translator(parts.translator), context)
    if parts.system == "pipeline":
        return Pipeline(language, tokenizer, load_captioner(parts.captioner), load_generator(parts.generator), context)
    perceptron: Any = load_perceptron(parts.perceptron) if parts.image_input == "qformer" else load_captioner(parts.captioner)
    if parts.image_input == "qformer" and perceptron.language_projection.out_features != language.get_input_embeddings().embedding_dim:
        raise ConfigError(f"the perceptron projects to {perceptron.language_projection.out_features} numbers, but the language model is "
                          f"{language.get_input_embeddings().embedding_dim} wide: model.perceptron and model.language do not belong together")
    return EndToEndModel(language, tokenizer, perceptron, load_generator(parts.generator), config.bridge, config.train.image_loss_weight, context)
