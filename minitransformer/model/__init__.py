"""Formulas become modules; one model for every family. In reading order:

- `config`: the switches that distinguish one Transformer from another;
- `shapes`: names for the shapes that pass through;
- `layers`: norms, feed-forward, dropout, embeddings; initial weights; checks of the inputs;
- `kv_cache`: keys and values of the tokens that a decoder has read;
- `attention`: masks and multi-head attention;
- `block`: sublayers with residual and norm, the encoder block and the decoder block;
- `transformer`: stacks of blocks: encoder, decoder, both together;
- `heads`: a classifier and three language models on top;
- `compare`: the switches of several models side by side.
"""
