"""Text becomes batches: sources, tokenizers, splits, padding, masks.

Reading order: `datasets` (labelled texts and their splits), `tables` (your own files), `downloads`
and `domains` (the texts of `make data`), `corpora` (texts to pretrain on), `batches`, `tokenizers`
and `vocabulary`, `sequences` (blocks and pairs), `stream` (texts larger than memory), `masking` and
`spans` (what BERT and T5 learn from), `atomic` (files written whole).
"""

from ..lazy import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    names={
        "batches": "Batch EncodedTexts pad",
        "corpora": "CORPORA corpus",
        "datasets": "LabelledTexts",
        "tables": "read_table read_texts samples",
        "domains": "DOMAINS load newspaper",
        "downloads": "data_folder",
        "masking": "MaskedBatch MaskedTexts",
        "sequences": "EncodedPairs PairBatch encode_pairs pack",
        "spans": "CorruptedSpans",
        "stream": "BlockFile write_blocks",
        "tokenizers": "Tokenizer encode",
        "vocabulary": "train_tokenizer",
    },
    modules={},
)
