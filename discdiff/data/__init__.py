"""Data: corpora, tokenizers, the store of token shards, and the loader that reads it in any order."""
