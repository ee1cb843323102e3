"""A tokenizer state in the format of the tokenizers library: for the next segmentation, and as the finished product.

tokenizer = segmenter(state)                                 # pieces -> token numbers of the state
write_tokenizer(folder, state, specification.tokenizer)      # tokenizer.json, tokenizer_config.json
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from confide.files import private_folder, write_atomic
from confide.runs.result_folder import write_manifest
from confide.runs.sections import TokenizerSection
from confide.runs.specification import Specification
from confide.tokenizer.state import TokenizerState, parse_state
from confide.tokenizer.terms import Terms


@lru_cache(maxsize=1)
def byte_characters() -> list[str]:
    """For each byte the visible character that stands for it in byte-level BPE (Radford et al. 2019)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shown = iter(range(0x100, 0x200))
    return [chr(value) if value in visible else chr(next(shown)) for value in range(0x100)]


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Splits text into words, numbers and punctuation, and their bytes into characters; a token never spans two."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def segmenter(state: TokenizerState) -> Tokenizer:
    """Encodes one pre-tokenized piece into token numbers of the state."""
    return Tokenizer(_bpe(state, ()))


def _bpe(state: TokenizerState, special_tokens: Sequence[str]) -> models.BPE:
    """Special tokens are numbered first: the library gives those that the model lacks numbers of its own."""
    characters = byte_characters()
    names = ["".join(characters[value] for value in token) for token in state.tokens]
    vocabulary = {name: number for number, name in enumerate([*special_tokens, *names])}
    return models.BPE(vocab=vocabulary, merges=[(names[left], names[right]) for left, right in state.merges])


def finished(state: TokenizerState, section: TokenizerSection) -> Tokenizer:
    """The whole tokenizer. Special tokens come first; with cls_token and sep_token they frame every text."""
    made = Tokenizer(_bpe(state, section.special_tokens))
    made.pre_tokenizer = pre_tokenizer()
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in section.special_tokens])
    roles = section.roles
    if roles.cls_token and roles.sep_token:
        numbers = {token: number for number, token in enumerate(section.special_tokens)}
        sep, cls = ((token, numbers[token]) for token in (roles.sep_token, roles.cls_token))
        made.post_processor = processors.BertProcessing(sep, cls)
    return made


def write_tokenizer(folder: Path, state: TokenizerState, section: TokenizerSection) -> Path:
    """tokenizer.json and tokenizer_config.json, which AutoTokenizer loads. Returns the folder."""
    private_folder(folder)
    write_atomic(folder / "tokenizer.json", finished(state, section).to_str(pretty=True).encode())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in section.roles.model_dump().items() if token},
    }
    write_atomic(folder / "tokenizer_config.json", json.dumps(config, indent=2, sort_keys=True).encode())
    return folder


def write_tokenizer_export(
    folder: Path, state: bytes, manifest: Mapping[str, Any], specification: Specification
) -> Path:
    """What a tokenizer run learned, in the tokenizers format, and manifest.json. Raises UpdateError for a bad state."""
    parsed = parse_state(state, Terms.of(specification))
    write_tokenizer(folder, parsed, specification.tokenizer)
    write_manifest(folder, {**manifest, "tokens": parsed.size + len(specification.tokenizer.special_tokens)})
    return folder


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Of UTF-8, without special tokens: how much text a token carries. 0 for no text."""
    tokens = sum(len(found.ids) for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))
    return sum(len(text.encode()) for text in texts) / max(tokens, 1)
