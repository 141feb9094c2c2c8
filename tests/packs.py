"""Texts of a few characters, packed into blocks."""

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foretell.data import Document, PackedBlocks


def byte_tokenizer(eos: bool) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, so that tokens can be told from the text without it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    vocabulary["<eos>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {"eos_token": "<eos>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4, **named)


WITH_EOS, WITHOUT_EOS = byte_tokenizer(eos=True), byte_tokenizer(eos=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def pack(texts: list[str], block_size: int, tokenizer=WITH_EOS, **options) -> PackedBlocks:
    documents = (Document(text, f"{number}.txt") for number, text in enumerate(texts))
    return PackedBlocks.from_documents(documents, tokenizer, block_size, **options)
