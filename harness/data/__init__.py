"""Corpora: where training and validation tokens come from."""

from __future__ import annotations

from pathlib import Path

from harness.data.batches import Corpus
from harness.schema import CorpusConfig, FactsConfig, TextConfig


def open_corpus(config: CorpusConfig, tokens_needed: int) -> Corpus:
    """The corpus of a config, with at least `tokens_needed` training tokens (or repetition allowed). CorpusError otherwise."""
    match config:
        case FactsConfig():
            from harness.data.facts import FactsCorpus

            return FactsCorpus(config)
        case TextConfig():
            from harness.data.text import open_text

            return open_text(config, config.context, config.val_tokens, tokens_needed)
        case _:
            raise TypeError(f"no corpus for {type(config).__name__}")


def corpus_vocab(config: CorpusConfig) -> int:
    """Embedding rows of the corpus's tokenizer. A text corpus is opened for it (and tokenised, once)."""
    if isinstance(config, FactsConfig):
        return config.vocab
    return open_corpus(config, tokens_needed=0).vocab


def save_tokenizer(corpus: Corpus, folder: Path) -> None:
    """Write the corpus's tokenizer as Hugging Face files: the embedded corpus names its tokens t0, t1, ..."""
    if corpus.info["kind"] == "facts":
        from harness.data.tokenizer import save_word_tokenizer

        save_word_tokenizer(corpus.vocab, folder)
    else:
        from harness.data.text import TextCorpus
        from harness.data.text import save_tokenizer as save_text_tokenizer

        assert isinstance(corpus, TextCorpus)
        save_text_tokenizer(corpus, folder)
