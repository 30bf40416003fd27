"""A block file holds what `pack` gives, in bounded memory, and refuses what it was not made for."""

import tracemalloc

import pytest
import torch

import minitransformer as mt
from minitransformer.data import (
    BlockFile,
    CorruptedSpans,
    MaskedTexts,
    encode,
    pack,
    stream,
    train_tokenizer,
    write_blocks,
)

LINES = [f"text {i} of many, é {'word ' * (i % 7)}".strip() for i in range(500)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES, "bytes", 300)


@pytest.fixture
def made(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("\ufeff" + "\n".join(LINES[:200]) + "\n\n")
    (tmp_path / "b.txt").write_text("\n".join(LINES[200:]), newline="\r\n")
    path = tmp_path / "ids"
    end = tokenizer.id_of("[END]")
    write_blocks([tmp_path / "a.txt", tmp_path / "b.txt"], path, tokenizer, end, progress=False)
    return path


@pytest.mark.parametrize("chunk", [1, 1000, 2**20])
def test_blocks_are_those_of_pack(tmp_path, tokenizer, monkeypatch, chunk, request):
    monkeypatch.setattr(stream, "CHUNK", chunk)
    made = request.getfixturevalue("made")
    blocks = BlockFile(made, tokenizer, 13)
    packed = pack(encode(LINES, tokenizer), 13, tokenizer.id_of("[END]"))
    ids = torch.cat([batch.ids for batch in blocks.batches(8)])
    assert len(blocks) == len(packed) and tuple(map(tuple, ids.tolist())) == packed.ids
    assert not list(tmp_path.glob("*.part"))


def test_masked_blocks_keep_the_frame(tmp_path):
    tokenizer = train_tokenizer(LINES, "words", 300)
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    sep = tokenizer.id_of("[SEP]")
    write_blocks([tmp_path / "a.txt"], tmp_path / "ids", tokenizer, sep, progress=False)
    ids = [b.ids for b in BlockFile(tmp_path / "ids", tokenizer, 32).batches(4)]
    assert tuple(map(tuple, torch.cat(ids).tolist())) == pack(encode(LINES, tokenizer), 32, sep).ids
    assert tokenizer.tokens(ids[0][0].tolist())[:2] == ["[CLS]", "text"]


def test_other_objectives_ask_for_blocks_on_disk_as_for_those_in_memory(tmp_path):
    tokenizer = train_tokenizer(LINES, "words", 300, extra=("<0>", "<1>", "<2>"))
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    sep = tokenizer.id_of("[SEP]")
    write_blocks([tmp_path / "a.txt"], tmp_path / "ids", tokenizer, sep, progress=False)
    on_disk = BlockFile(tmp_path / "ids", tokenizer, 24)
    in_memory = pack(encode(LINES, tokenizer), 24, sep)

    for one, other in zip(
        MaskedTexts(on_disk, tokenizer).batches(8), MaskedTexts(in_memory, tokenizer).batches(8),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(one.ids, other.ids) and torch.equal(one.chosen, other.chosen)
        assert torch.equal(one.targets, other.targets)
    holes = [tokenizer.id_of(f"<{i}>") for i in range(3)]
    for one, other in zip(
        CorruptedSpans(on_disk, holes, sep).batches(8, seed=1),
        CorruptedSpans(in_memory, holes, sep).batches(8, seed=1),
        strict=True,
    ):
        assert torch.equal(one.source, other.source) and torch.equal(one.target, other.target)


def test_order_follows_the_seed_and_every_block_comes_once(made, tokenizer):
    blocks = BlockFile(made, tokenizer, 7)

    def order(seed):
        return [i for batch in blocks.batches(8, seed) for i in batch.indices]

    assert order(1) == order(1) != order(2) != order(None)
    assert sorted(order(1)) == order(None) == list(range(len(blocks)))
    plain = torch.cat([batch.ids for batch in blocks.batches(8)])
    for batch in blocks.batches(8, 1):
        assert torch.equal(batch.ids, plain[list(batch.indices)]) and batch.keep.all()
        assert batch.n_targets == 6 * len(batch)


def test_memory_does_not_grow_with_the_file(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 2**12)
    peaks = []
    for times in (1, 20):
        (tmp_path / "a.txt").write_text("\n".join(LINES * times))
        tracemalloc.start()
        write_blocks([tmp_path / "a.txt"], tmp_path / "ids", tokenizer, 3, progress=False)
        for _ in BlockFile(tmp_path / "ids", tokenizer, 32).batches(8):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "a.txt").stat().st_size > 50 * 2**12
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.trains
def test_a_model_learns_from_a_block_file(made, tokenizer):
    torch.manual_seed(0)
    blocks = BlockFile(made, tokenizer, 16)
    config = mt.TransformerConfig.gpt2(
        vocab_size=tokenizer.vocab_size, d_model=16, n_heads=2, n_layers=1, d_ff=32, max_len=16
    )
    history = mt.pretrain(
        mt.CausalLM(mt.Decoder(config)), blocks, blocks, steps=20, lr=1e-2, progress=False
    )
    assert history.validations[-1]["valid_loss"] < history.validations[0]["valid_loss"]


def test_what_does_not_fit_is_refused(made, tmp_path, tokenizer):
    whole = made.read_bytes()
    with pytest.raises(ValueError, match="made with another tokenizer"):
        BlockFile(made, train_tokenizer(LINES, "bytes", 299), 8)
    with pytest.raises(ValueError, match="do not fill one block of 1000000"):
        BlockFile(made, tokenizer, 1000000)
    made.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        BlockFile(made, tokenizer, 8)
    made.write_bytes(whole[200:])
    with pytest.raises(ValueError, match="not a file of token ids"):
        BlockFile(made, tokenizer, 8)
    with pytest.raises(FileNotFoundError, match="make it with write_blocks"):
        BlockFile(tmp_path / "none", tokenizer, 8)


def test_bad_texts_are_named_and_leave_nothing(tmp_path, tokenizer):
    bad, ids = tmp_path / "bad.txt", tmp_path / "ids"
    for content, message in ((b"ok\ncaf\xe9\n", r"bad\.txt, line 2: the byte 0xe9"),
                             (b" \n\n", "there is no text in"), (b"", "there is no text in")):  # fmt: skip
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            write_blocks([bad], ids, tokenizer, 3, progress=False)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.txt"):
        write_blocks([tmp_path / "none.txt"], ids, tokenizer, 3, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.txt"]
