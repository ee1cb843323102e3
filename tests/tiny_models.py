"""Tiny random models with a tokenizer trained on the spot, saved as real transformers folders. Nothing is fetched."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    "How thick must the wall be? The wall must be twelve centimetres thick. Does a sole trader need a permit? "
    "Yes, a sole trader needs a permit before the works begin. Which mortar is right for an old brick wall? "
    "A lime mortar is right for an old brick wall. Who pays for the scaffold? The client pays for the scaffold."
)


def make_tokenizer(folder: Path, *, chat: bool = True, mask: bool = False, vocabulary: int = 300) -> Any:
    """A byte-level BPE tokenizer with ChatML (or BERT-like) special tokens, saved in `folder`."""
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<eos>"] + (["[CLS]", "[SEP]", "[MASK]"] if mask else [])
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([TEXT], trainer)
    names = {"pad_token": "<pad>", "eos_token": "<|im_end|>" if chat else "<eos>"}
    if mask:
        raw.post_processor = processors.BertProcessing(
            ("[SEP]", raw.token_to_id("[SEP]")), ("[CLS]", raw.token_to_id("[CLS]"))
        )
        names |= {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    if chat and not mask:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def sentencepiece_tokenizer(folder: Path) -> Any:
    """BPE that puts a mark before each text, as the tokenizers of Llama 2, Mistral 7B v0.1 and Phi-3 do."""
    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = [*sorted(set(TEXT.replace(" ", "\u2581")) | set("abcdefghijklmnopqrstuvwxyz\n\u2581")), *_BYTES]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*special, *_BYTES],
        initial_alphabet=alphabet[: -len(_BYTES)],
        show_progress=False,
    )
    raw.train_from_iterator([word + " " for word in TEXT.split()], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


_BYTES = [f"<0x{number:02X}>" for number in range(256)]


def _save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, *, seed: int = 0, layers: int = 2, width: int = 32, chat: bool = True) -> Path:
    """A Llama with tied embeddings, about 30k parameters."""
    tokenizer = make_tokenizer(folder, chat=chat)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return _save(transformers.LlamaForCausalLM(config), folder)


def tiny_gpt2(folder: Path, *, seed: int = 0, layers: int = 2, width: int = 32, dropout: float = 0.0) -> Path:
    """A GPT-2 (Conv1D layers, learned positions)."""
    tokenizer = make_tokenizer(folder, chat=False)
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_positions=512,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    return _save(transformers.GPT2LMHeadModel(config), folder)


def tiny_bert(folder: Path, *, seed: int = 0, layers: int = 2, width: int = 32, head: bool = True) -> Path:
    """A BERT without dropout, with the masked-LM head, or as a bare encoder (head=False)."""
    tokenizer = make_tokenizer(folder, chat=False, mask=True)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(transformers.BertForMaskedLM(config) if head else transformers.BertModel(config), folder)
