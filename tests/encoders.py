"""A random encoder of a few thousand weights, so that a test can go the whole way in a minute."""

from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from train_jobs.samples import generate

_ROWS = 1200


def make_tiny_bert(folder: Path) -> Path:
    """A random BERT whose vocabulary comes from the sample messages, in Hugging Face's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = BertWordPieceTokenizer(lowercase=True)
    texts = [sample.text for sample in generate(_ROWS, seed=1)]
    trained.train_from_iterator(texts, vocab_size=800, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), do_lower_case=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder
