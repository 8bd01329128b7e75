"""Trimming: a domain's texts are read as before, and any other text is still read."""

import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers
from tokenizers.normalizers import BertNormalizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
)

from cluster.bundles import TOKENIZER
from cluster.errors import ConfigError
from serve_app.guard.prepare import normalise
from serve_app.model.tokenizer import TextTokenizer
from train_jobs.samples.generator import generate
from train_jobs.student.vocabulary import STAND_IN, Vocabulary, cost, save, trim, trim_embedding
from train_jobs.training.encoders import resolve_base

TEXTS = [normalise(sample.text) for sample in generate(1500, seed=1)]
OTHERS = [normalise(sample.text) for sample in generate(300, seed=2)]
AMPLE, TIGHT = 6000, 2200  # pieces: all that TEXTS use fits, or little more than characters do
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ANY_TEXT = st.text(st.characters(exclude_categories=()))
MIXED = st.lists(st.sampled_from([*"aZ9é!# ", "refund", "天", "嗎", "ก", "ค", "😀", "\u0301"]))
MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "bert": (BertConfig, BertForSequenceClassification),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
}


def _untruncated(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    return _untruncated(Path(resolve_base("minilm")) / TOKENIZER)


@pytest.fixture(scope="module")
def ample(minilm: Tokenizer) -> Vocabulary:
    return trim(minilm, TEXTS, AMPLE)


@pytest.fixture(scope="module")
def tight(minilm: Tokenizer) -> Vocabulary:
    return trim(minilm, TEXTS, TIGHT)


@pytest.fixture(scope="module")
def roberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as RoBERTa has it: four special tokens first, <mask> last."""
    folder = tmp_path_factory.mktemp("roberta")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        TEXTS + OTHERS, 1500, special_tokens=ROBERTA_SPECIAL[:4], show_progress=False
    )
    trained.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(roberta_folder: Path) -> Tokenizer:
    return _untruncated(roberta_folder / TOKENIZER)


@pytest.fixture(scope="module")
def tight_roberta(roberta: Tokenizer) -> Vocabulary:
    return trim(roberta, TEXTS[:5], 300)


def _pieces(tokenizer: Tokenizer, texts: list[str]) -> list[list[str]]:
    return [encoding.tokens for encoding in tokenizer.encode_batch(texts)]


# ---- what the domain says is read as before ------------------------------------------------------


def test_domain_texts_keep_their_pieces(minilm: Tokenizer, ample: Vocabulary) -> None:
    assert _pieces(ample.tokenizer, TEXTS) == _pieces(minilm, TEXTS)
    for text in TEXTS[:50]:
        ids = ample.tokenizer.encode(text).ids
        assert [ample.kept[i] for i in ids] == minilm.encode(text).ids


def test_byte_level_domain_texts_keep_their_pieces(roberta: Tokenizer) -> None:
    few = TEXTS[:20]
    trimmed = trim(roberta, few, 1000)
    assert len(trimmed.kept) <= 1000 < roberta.get_vocab_size()
    assert _pieces(trimmed.tokenizer, few) == _pieces(roberta, few)
    for text in few:
        ids = trimmed.tokenizer.encode(text).ids
        assert [trimmed.kept[i] for i in ids] == roberta.encode(text).ids


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(TEXTS + OTHERS), min_size=1, max_size=8), st.integers(261, 1500))
def test_byte_level_pieces_are_the_same_whenever_they_are_all_kept(
    roberta: Tokenizer, few: list[str], budget: int
) -> None:
    """A piece is kept with all it is merged from, so the kept merges go the same way."""
    trimmed = trim(roberta, few, budget)
    kept = trimmed.tokenizer.get_vocab().keys()
    for text, pieces in zip(OTHERS, _pieces(roberta, OTHERS), strict=True):
        if kept >= set(pieces):
            assert trimmed.tokenizer.encode(text).tokens == pieces
        assert trimmed.tokenizer.decode(trimmed.tokenizer.encode(text).ids) == text


def test_a_tight_budget_keeps_what_is_used_most(minilm: Tokenizer, tight: Vocabulary) -> None:
    """Words by falling use: what is left out is used no more often than what is kept."""
    used: dict[str, int] = {}
    for piece in (p for pieces in _pieces(minilm, TEXTS) for p in pieces):
        used[piece] = used.get(piece, 0) + 1
    kept = tight.tokenizer.get_vocab()
    words = [piece for piece in used if len(piece.removeprefix("##")) > 1 and piece[0] != "["]
    inside = [used[word] for word in words if word in kept]
    outside = [used[word] for word in words if word not in kept]
    assert len(tight.kept) == TIGHT
    assert inside
    assert outside
    assert min(inside) >= max(outside)


def test_what_the_domain_leaves_free_goes_to_frequent_pieces(
    minilm: Tokenizer, ample: Vocabulary
) -> None:
    """The filled-up pieces are the beginning of BERT's list, which has no hole but [unusedN]."""
    used = {piece for pieces in _pieces(minilm, TEXTS) for piece in pieces}
    kept = ample.tokenizer.get_vocab().keys()
    filled = [p for p in kept - used - {STAND_IN} if len(p.removeprefix("##")) > 1]
    last = max(minilm.token_to_id(piece) for piece in filled)
    assert len(filled) > 1000
    assert {minilm.id_to_token(i) for i in range(last) if not 1 <= i < 100} - kept == {
        f"[unused{i}]" for i in range(99, 994)
    }


# ---- any text is read ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(ANY_TEXT | MIXED.map("".join))
@example("a" * 1001)
@example("\u0301 \ufffd")
@example("naïve😀ness")
@example("สวัสดีครับ")
@example("İstanbul ﷺ ㍿ ꙮ 𓀀")
def test_no_text_becomes_unknown_or_empty(ample: Vocabulary, tight: Vocabulary, raw: str) -> None:
    text = normalise(raw)
    for vocabulary in (ample, tight):
        ids = vocabulary.tokenizer.encode(text).ids
        pieces = vocabulary.tokenizer.encode(text, add_special_tokens=False).tokens
        assert all(i < len(vocabulary.kept) for i in ids)
        assert bool(pieces) == bool(text)
        assert "[UNK]" not in pieces


def test_no_character_becomes_unknown_or_empty(tight: Vocabulary) -> None:
    """All characters that Unicode assigns, alone and within a word; of the letters every fifth."""
    seen = (c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] != "C")
    some = {normalise(c) for c in seen if unicodedata.category(c) != "Lo" or ord(c) % 5 == 0}
    texts = [text for alone in sorted(some - {""}) for text in (alone, f"a{alone}b")]
    unknown = tight.tokenizer.token_to_id("[UNK]")
    for encoding in tight.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        assert encoding.ids
        assert unknown not in encoding.ids


@settings(deadline=None)
@given(ANY_TEXT)
def test_byte_level_loses_nothing(tight_roberta: Vocabulary, raw: str) -> None:
    text = normalise(raw)
    ids = tight_roberta.tokenizer.encode(text, add_special_tokens=False).ids
    assert all(i < len(tight_roberta.kept) for i in ids)
    assert tight_roberta.tokenizer.decode(ids) == text


def test_an_unknown_character_leaves_the_word_readable(ample: Vocabulary) -> None:
    tokens = ample.tokenizer.encode("great😀! my😀😀card", add_special_tokens=False).tokens
    assert tokens == ["great", STAND_IN, "!", "my", STAND_IN, "card"]
    assert ample.kept[ample.tokenizer.token_to_id(STAND_IN)] == 100  # the row of [UNK]


def test_words_beside_emoji_count_as_used(minilm: Tokenizer) -> None:
    """They are unknown to the original tokenizer, so counting with that would drop them."""
    texts = [f"{word}😀 yes" for word in ("thermodynamic", "unfortunately")]
    kept = trim(minilm, texts, 2010).tokenizer.get_vocab()
    pieces = minilm.encode("thermodynamic unfortunately", add_special_tokens=False).tokens
    assert set(pieces) <= kept.keys()


def test_a_character_known_in_one_place_only_is_read_in_both() -> None:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "b", "##c", "##da"]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(vocab)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(vocab[:4])
    trimmed = trim(tokenizer, ["aa"], 100)
    pieces = trimmed.tokenizer.encode("ab ca ada d").tokens
    assert pieces == ["a", "##b", "c", "##a", "a", "##da", "d"]
    rows = {piece: trimmed.kept[i] for piece, i in trimmed.tokenizer.get_vocab().items()}
    assert [rows[p] for p in ("##b", "c", "d", "##d", STAND_IN)] == [6, 7, 1, 1, 1]


# ---- special tokens, files, determinism ----------------------------------------------------------


def test_special_tokens_keep_their_order(ample: Vocabulary, roberta: Tokenizer) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [ample.tokenizer.token_to_id(name) for name in names] == [0, 1, 2, 3, 4]
    assert ample.tokenizer.encode("", "").ids == [2, 3, 3]
    trimmed = trim(roberta, TEXTS, 700)
    ids = [trimmed.tokenizer.token_to_id(name) for name in ROBERTA_SPECIAL]
    assert ids == [0, 1, 2, 3, 699]
    assert trimmed.tokenizer.encode("", "").ids == [0, 2, 2, 2]


def test_a_tokenizer_that_pads_and_truncates_is_trimmed_without_being_changed(
    ample: Vocabulary,
) -> None:
    """MiniLM's file pads to 128: counting would count padding, and the edge would pay for it."""
    padding = Tokenizer.from_file(str(Path(resolve_base("minilm")) / TOKENIZER))
    assert padding.padding
    trimmed = trim(padding, TEXTS, AMPLE)
    assert trimmed.tokenizer.to_str() == ample.tokenizer.to_str()
    assert trimmed.tokenizer.padding is None
    assert trimmed.tokenizer.truncation is None
    assert padding.padding


@pytest.mark.parametrize("kind", ["minilm", "roberta"])
def test_saved_it_reads_the_same_everywhere(
    kind: str, minilm: Tokenizer, roberta: Tokenizer, roberta_folder: Path, tmp_path: Path
) -> None:
    source = roberta_folder if kind == "roberta" else Path(resolve_base("minilm"))
    trimmed = trim(roberta if kind == "roberta" else minilm, TEXTS, 2200)
    save(trimmed, source, tmp_path / "first")
    save(trim(roberta if kind == "roberta" else minilm, TEXTS, 2200), source, tmp_path / "second")
    before, loaded = (
        AutoTokenizer.from_pretrained(source),
        AutoTokenizer.from_pretrained(tmp_path / "first"),
    )
    served = TextTokenizer.from_file(tmp_path / "first" / TOKENIZER)
    texts = [*TEXTS[:100], "great😀!", "สวัสดี", "one " + before.mask_token, ""]
    expected = [trimmed.tokenizer.encode(text).ids for text in texts]
    assert loaded(texts)["input_ids"] == expected
    assert served.encode(texts) == expected
    assert loaded.pad_token_id == trimmed.new_id(before.pad_token_id)
    assert loaded.special_tokens_map == before.special_tokens_map
    assert loaded.model_input_names == before.model_input_names
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


# ---- the embedding -------------------------------------------------------------------------------


def _classifier(kind: str, tokenizer: Tokenizer) -> Any:
    """A random one that is too small to matter, with the tokenizer's whole vocabulary."""
    make_config, make_model = MODELS[kind]
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 300}
    if kind == "distilbert":
        sizes |= {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    else:
        sizes |= {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 16}
    torch.manual_seed(0)
    return make_model(make_config(**sizes, num_labels=3)).eval()


@torch.inference_mode()
def _logits(model: Any, tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Padded, so that a wrong padding id shows in the positions of RoBERTa."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.enable_padding(pad_id=model.config.pad_token_id)
    encodings = copy.encode_batch(texts)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    mask = torch.tensor([encoding.attention_mask for encoding in encodings])
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert isinstance(logits, torch.Tensor)
    return logits


@pytest.mark.parametrize("kind", MODELS)
def test_a_trimmed_model_answers_as_before(
    kind: str, minilm: Tokenizer, roberta: Tokenizer, ample: Vocabulary, tmp_path: Path
) -> None:
    tokenizer = roberta if kind == "roberta" else minilm
    trimmed = trim(roberta, TEXTS[:20], 1000) if kind == "roberta" else ample
    model = _classifier(kind, tokenizer)
    before = _logits(model, tokenizer, TEXTS[:20])
    trim_embedding(model, trimmed)
    assert torch.equal(_logits(model, trimmed.tokenizer, TEXTS[:20]), before)
    words = model.get_input_embeddings()
    assert words.weight.shape == (len(trimmed.kept), 8)
    assert words.weight.requires_grad
    assert words.padding_idx == model.config.pad_token_id == (1 if kind == "roberta" else 0)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(_logits(loaded, trimmed.tokenizer, TEXTS[:20]), before)


def test_token_ids_in_the_configuration_follow(minilm: Tokenizer, ample: Vocabulary) -> None:
    model = _classifier("bert", minilm)
    model.config.sep_token_id, model.config.bos_token_id = 102, 5  # 5: [unused4], not kept
    trim_embedding(model, ample)
    assert model.config.vocab_size == len(ample.kept)
    assert model.config.sep_token_id == ample.tokenizer.token_to_id("[SEP]")
    assert model.config.bos_token_id is None


def test_a_model_that_does_not_fit_is_refused(
    minilm: Tokenizer, roberta: Tokenizer, ample: Vocabulary
) -> None:
    model = _classifier("bert", minilm)
    trim_embedding(model, ample)
    with pytest.raises(ConfigError, match="has 6,000 rows"):
        trim_embedding(model, ample)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ConfigError, match="classifier"):
        trim_embedding(BertForMaskedLM(BertConfig(**sizes)), ample)
    moved = _classifier("roberta", minilm)
    moved.get_input_embeddings().padding_idx = 103
    with pytest.raises(ConfigError, match="from 103 to 4"):
        trim_embedding(moved, ample)


# ---- the cost ------------------------------------------------------------------------------------


def test_the_cost_of_enough_and_of_too_little(
    minilm: Tokenizer, ample: Vocabulary, tight: Vocabulary
) -> None:
    free = cost(minilm, ample, TEXTS)
    assert free.retokenised_share == 0
    assert free.tokens_per_message_after == free.tokens_per_message_before > 10
    dear = cost(minilm, tight, OTHERS)
    assert dear.messages == len(OTHERS)
    assert dear.tokens_per_message_after > dear.tokens_per_message_before
    assert 0 < dear.retokenised_share <= 1
    assert dear.unknown_share_after == 0


def test_the_cost_counts_what_is_unknown(minilm: Tokenizer, ample: Vocabulary) -> None:
    """A lone emoji is as unknown as it was; the word beside one no longer is."""
    found = cost(minilm, ample, ["great😀", "😀", "my card", "ค 😀"])
    assert (found.all_unknown_before, found.all_unknown_after) == (3, 2)
    assert (found.unknown_share_before, found.unknown_share_after) == (4 / 6, 4 / 7)
    assert found.retokenised_share == 1 / 4


# ---- refusals ------------------------------------------------------------------------------------


def test_a_budget_that_cannot_spell_is_refused_with_the_one_that_can(minilm: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"alone are 2,000\b"):
        trim(minilm, TEXTS, 1999)
    assert len(trim(minilm, TEXTS, 2000).kept) == 2000


@pytest.mark.parametrize(
    "model",
    [
        models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0),
        models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
    ],
    ids=["unigram", "word-level", "word-piece-of-another-splitter", "bpe-of-characters"],
)
def test_another_kind_of_tokenizer_is_refused(model: models.Model) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    name = json.loads(tokenizer.to_str())["model"]["type"]
    with pytest.raises(ConfigError, match=f"kind '{name}' with pre-tokenizer 'Whitespace'"):
        trim(tokenizer, ["a"], 100)


def test_a_byte_level_tokenizer_without_all_bytes_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(ConfigError, match="lacks 254 of the 256"):
        trim(tokenizer, ["a"], 100)


def test_texts_that_the_tokenizer_cannot_read_are_refused(minilm: Tokenizer) -> None:
    amharic = ["ሰላም እንዴት ነህ", "የባንክ ካርዴ አይሰራም 2"]
    with pytest.raises(ConfigError, match="6 of 7 words and pieces in 2 texts"):
        trim(minilm, amharic, AMPLE)
    with pytest.raises(ConfigError, match="no word"):
        trim(minilm, ["", " "], AMPLE)
    trim(minilm, [*amharic, "my card does not work"], AMPLE)
