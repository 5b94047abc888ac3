"""Small random checkpoints in the layouts that the model hub has for the paper's parts.

Their classes, file names, number formats and settings are those of the real ones; only the sizes are small.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from small_tokenizers import tokenizer
from tokenizers import Tokenizer
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TEMPLATE = ("{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
            "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}")


def save_llama(folder: Path, dtype: torch.dtype = torch.float16, intermediate_size: int = 96) -> Path:
    """As meta-llama/Llama-2-7b-chat-hf: fp16 in shards, a tokenizer of class LlamaTokenizer, a chat template."""
    definition = json.loads(tokenizer("sentencepiece").backend_tokenizer.to_str())
    definition["added_tokens"] = [row for row in definition["added_tokens"] if row["content"] in ("<unk>", "<s>", "</s>")]
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(definition)), unk_token="<unk>", bos_token="<s>",
                                    eos_token="</s>")
    config = LlamaConfig(vocab_size=len(words), hidden_size=64, intermediate_size=intermediate_size, num_hidden_layers=2, num_attention_heads=4,
                         max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size="100KB")
    words.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizer", "chat_template": TEMPLATE}))
    return folder


def save_blip2(folder: Path, side: int = 56) -> Path:
    """As Salesforce/blip2-opt-2.7b-coco: ViT, Q-Former, projection and an OPT in one sharded checkpoint."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={**small, "image_size": side, "patch_size": 14},
        qformer_config={**small, "hidden_size": 24, "encoder_hidden_size": 32, "vocab_size": 40, "cross_attention_frequency": 2},
        text_config={"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "vocab_size": len(tokenizer("byte_level")) + 1, "max_position_embeddings": 64},
        num_query_tokens=8, image_token_index=len(tokenizer("byte_level")))
    torch.manual_seed(1)
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # not zeros, as new queries would be
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder, max_shard_size="60KB")
    BlipImageProcessorPil(size={"height": side, "width": side}, image_mean=CLIP_MEAN, image_std=CLIP_STD).save_pretrained(folder)
    tokenizer("byte_level").save_pretrained(folder)
    return folder


def save_diffusion(folder: Path) -> Path:
    """As stable-diffusion-2-1-base: a pipeline of CLIP, AutoencoderKL and UNet, with PNDM's settings of the scheduler."""
    words = tokenizer("clip")
    torch.manual_seed(2)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                                        hidden_act="gelu", eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id))
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=(2, 4),
                                norm_num_groups=8, use_linear_projection=True, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    vae = AutoencoderKL(block_out_channels=(8, 16, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
                        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
                              set_alpha_to_one=False, prediction_type="epsilon")
    StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None,
                            feature_extractor=None, requires_safety_checker=False).save_pretrained(folder)
    return folder


def save_dialogpt(folder: Path) -> Path:
    """As microsoft/DialoGPT-medium: a GPT-2 whose only special token is its end of text."""
    end = "<|endoftext|>"
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer("byte_level").backend_tokenizer, bos_token=end, eos_token=end)
    torch.manual_seed(3)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=256, bos_token_id=words.eos_token_id,
                               eos_token_id=words.eos_token_id)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
