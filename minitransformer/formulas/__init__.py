"""The mathematics, and nothing else. In reading order:

- `by_hand`, `by_hand_decoder`: every formula in NumPy, index by index;
- `ops`: the same in torch, written out; `fast`: by torch's kernels; `masks`: used by both;
- `gradients`, `block_gradients`, `decoder_gradients`: every derivative, derived on paper, in NumPy;
- `numpy_transformer`: a classifier that learns by these derivatives alone;
- `model_gradients`: the derivatives of whole language models.
"""
