"""The checks on the whole Transformer and on sampling take right answers however written."""

import torch
import torch.nn.functional as F

import minitransformer as mt
from minitransformer.model.attention import causal_mask


def test_right_answers_pass_however_written():
    def shifted(target, start_id):
        given = torch.empty_like(target)
        given[:, 0], given[:, 1:] = start_id, target[:, :-1]
        return given

    def weighted(logits, target, keep):
        losses = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        return (losses * keep).sum() / keep.sum()

    def marked(logits, target, keep):
        return F.cross_entropy(logits.flatten(0, 1), target.masked_fill(~keep, -100).flatten())

    def both(source, target, source_keep, encoder, decoder):
        causal = causal_mask(target.shape[1])
        return decoder(target, encoder(source, source_keep), causal, source_keep)

    def both_in_full(source, target, source_keep, encoder, decoder):
        keep = source_keep.expand(-1, -1, source.shape[1], -1)
        causal = causal_mask(target.shape[1]).expand(len(target), 1, -1, -1)
        z = encoder(source, keep=keep)
        return decoder(target, z, keep=causal, memory_keep=source_keep)

    def tempered(logits, temperature):
        return torch.exp(logits / temperature - (logits / temperature).logsumexp(-1, keepdim=True))

    def by_removal(probabilities, top_p):
        ordered, ids = probabilities.sort(descending=True)
        remove = ordered.cumsum(-1) >= top_p
        remove = F.pad(remove[:, :-1], (1, 0), value=False)
        remove = torch.zeros_like(remove).scatter(1, ids, remove)
        return probabilities.log().masked_fill(remove, float("-inf")).softmax(-1)

    for exercise, answers in {
        "shift_right": [shifted],
        "target_loss": [weighted, marked],
        "encoder_decoder": [both, both_in_full],
        "temperature": [tempered],
        "top_p": [by_removal],
    }.items():
        for answer in answers:
            for seed in (4, 5, 6):
                result = getattr(mt.check, exercise)(answer, seed)
                assert result.passed, result


def test_what_students_write_is_named():
    def message(exercise, answer):
        return getattr(mt.check, exercise)(answer).message

    assert "no start token" in message("shift_right", lambda target, start_id: target.roll(1, -1))
    kept_whole = message(
        "shift_right", lambda target, start_id: F.pad(target, (1, 0), value=start_id)
    )
    assert "The shape is wrong" in kept_whole and "(3, 8)" in kept_whole
    masked = message(
        "target_loss",
        lambda logits, target, keep: (
            F.cross_entropy(logits.transpose(1, 2), target, reduction="none") * keep
        ).mean(),
    )
    assert "divided by the number of positions" in masked
    future = message(
        "encoder_decoder",
        lambda x, y, keep, encoder, decoder: decoder(y, encoder(x, keep), None, keep),
    )
    assert "Changing the target at 6 changed your output" in future
    assert "without a causal mask in the decoder" in future
    assert "multiplied by the temperature" in message(
        "temperature", lambda logits, temperature: (logits * temperature).softmax(-1)
    )


def test_unknown_slips_are_located():
    """Also where the output is whole numbers, or a single one."""

    def one_is_wrong(target, start_id):
        given = F.pad(target[:, :-1], (1, 0), value=start_id)
        given[:, 2:3] = 9
        return given

    assert "Along length only [2] are wrong" in mt.check.shift_right(one_is_wrong).message
    tenth = mt.check.target_loss(
        lambda logits, target, keep: F.cross_entropy(logits[keep], target[keep]) * 1.1
    )
    assert "1.1 times the right one" in tenth.message
