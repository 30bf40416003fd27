"""A folder's tokenizer: what its files say, as the class of transformers' that they name follows it."""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from ..data.tokenizers import ROLES, Tokenizer, framed
from .hf_config import ENTRIES, as_object, check_table, parse

TOKENIZER_CONFIG, TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_FILES = (TOKENIZER_CONFIG, TOKENS_MAP, "added_tokens.json", "tokenizer.json", "vocab.txt",
                   "vocab.json", "merges.txt")  # fmt: skip
CLASSES: dict[str, str] = ENTRIES["tokenizer classes"]
"""The classes that are followed, without "Fast", and the kind of vocabulary each has; those with any
take tokenizer.json as it is."""
SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")
PROBE = "Éa ÀB  \tdon't 12中文\u200b\x01 İ½ ﬁ x_y"


def read_tokenizer(files: Mapping[str, bytes], where: str, max_length: int) -> Tokenizer:
    """The tokenizer from tokenizer.json, or from vocab.txt, or from vocab.json and merges.txt.

    The settings beside them are followed as transformers' AutoTokenizer does; ValueError for one that
    cannot be, and for files that contradict each other.
    """
    said, config = parse(files, TOKENIZER_CONFIG), parse(files, "config.json")
    if "added_tokens_decoder" not in said:
        said |= parse(files, TOKENS_MAP)
    named = said.get("tokenizer_class") or config.get("tokenizer_class")
    kind = CLASSES.get(str(named or "TokenizersBackend").removesuffix("Fast"))
    if kind is None:
        known = ", ".join(CLASSES)
        raise ValueError(
            f"{TOKENIZER_CONFIG}: tokenizer_class {named!r} is not known; known: {known}"
        )
    check_table(TOKENIZER_CONFIG, said)
    backend, found = read_vocabulary(files, said)
    if kind not in ("any", found):
        raise ValueError(f"{TOKENIZER_CONFIG}: a {named} has {kind}, the vocabulary is {found}")
    if "tokenizer.json" not in files or (
        not named and found == IMPLIED.get(str(config.get("model_type")))
    ):
        kind = found
    usual = ENTRIES["their special tokens"].get(kind, {})
    tokens = {role: t for role, t in usual.items() if backend.token_to_id(t) is not None}
    tokens |= {role: said[role] for role in ROLES if role in said}
    roles = {role: as_token(t, role) for role, t in tokens.items() if t is not None}
    add_tokens(backend, said, parse(files, "added_tokens.json"), roles, "tokenizer.json" in files)
    apply_settings(backend, kind, found, said, roles, "tokenizer.json" in files)
    names = {role: token.content for role, token in roles.items()} or None
    sides = (said.get(f"{part}_side") for part in ("padding", "truncation"))
    return Tokenizer(backend, max_length, names, *sides)


def longest(files: Mapping[str, bytes], max_length: int) -> int:
    """How many ids a text may have: the model's positions, or fewer if the tokenizer's files say so."""
    limit = parse(files, TOKENIZER_CONFIG).get("model_max_length") or max_length
    if type(limit) not in (int, float) or limit < 3:
        raise ValueError(f"{TOKENIZER_CONFIG}: model_max_length {limit!r} is not a number of ids")
    return int(min(max_length, limit))


IMPLIED = {"bert": "WordPiece", "gpt2": "BPE", "t5": "Unigram"}
"""The kind of a family's own class, which is meant where none is named."""


def read_vocabulary(files: Mapping[str, bytes], said: dict[str, Any]) -> tuple[Backend, str]:
    """The tokenizer without the settings beside it, and its kind; ValueError if there is none."""
    if "tokenizer.json" in files:
        try:
            stored = json.loads(files["tokenizer.json"])
            for part in ("padding", "truncation"):  # of these only the sides count
                if about := stored.pop(part, None):
                    said.setdefault(f"{part}_side", about.get("direction", "Right").lower())
                    said.setdefault("pad_token", about["pad_token"]) if part == "padding" else None
            backend = Backend.from_str(json.dumps(stored))
            return backend, stored["model"].get("type") or type(backend.model).__name__
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"tokenizer.json cannot be read ({error})") from error
    try:
        texts = {name: files[name].decode() for name in TOKENIZER_FILES[4:] if name in files}
    except UnicodeDecodeError as error:
        raise ValueError(f"the vocabulary is not UTF-8 ({error})") from error
    if "vocab.txt" in texts:
        return Tokenizer.from_vocab(texts["vocab.txt"]).backend, "WordPiece"
    if {"vocab.json", "merges.txt"} <= texts.keys():
        return Tokenizer.from_merges(texts["vocab.json"], texts["merges.txt"]).backend, "BPE"
    raise ValueError(
        "there is neither a tokenizer.json nor a vocab.txt, nor vocab.json with merges.txt (a "
        "spiece.model is not read; AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of "
        "transformers writes a tokenizer.json)"
    )


def apply_settings(
    backend: Backend, kind: str, found: str, said: Mapping[str, Any],
    roles: Mapping[str, AddedToken], complete: bool,
) -> None:  # fmt: skip
    """Prepare and frame texts as the class does; ValueError if a `complete` tokenizer.json objects."""
    settings = [entry for entry in SETTINGS if entry in said]
    if kind == "any" and not settings:
        return
    before = plan(backend)
    names = {role: token.content for role, token in roles.items()}
    ends = [names.get(role, "") for role in ("cls_token", "sep_token", "eos_token")]
    cls, sep, eos = (end if backend.token_to_id(end) is not None else "" for end in ends)
    if found == "WordPiece":
        backend.model.unk_token = names.get("unk_token", backend.model.unk_token)
        backend.normalizer = normalizers.BertNormalizer(
            lowercase=said.get("do_lower_case", True), strip_accents=said.get("strip_accents"),
            handle_chinese_chars=said.get("tokenize_chinese_chars", True),
        )  # fmt: skip
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if cls and sep:
            backend.post_processor = framed(backend, cls, sep)
    elif found == "BPE":
        space = said.get("add_prefix_space", False)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    elif found == "Unigram" and eos:
        spaces = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
        last = [("</s>", backend.token_to_id(eos))]
        backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=last)
    if complete and (kind == "any" or not settings) and plan(backend) != before:
        entries = (
            ", ".join(f"{e}={said[e]!r}" for e in said if e in (*SETTINGS, *ROLES)) or "nothing"
        )
        raise ValueError(
            f"tokenizer.json prepares text in another way than {TOKENIZER_CONFIG} says ({entries}); let "
            "both say the same, or name PreTrainedTokenizerFast, which takes tokenizer.json as it is"
        )


def plan(backend: Backend) -> tuple[Any, ...]:
    """What a tokenizer does with a text before it looks at its vocabulary, and its frame."""
    words = PROBE if backend.normalizer is None else backend.normalizer.normalize_str(PROBE)
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(words)]
    return words, backend.encode("").ids


def as_token(token: Any, where: str = "a token", special: bool = True) -> AddedToken:
    """A token, which a file gives as a text or with its flags; ValueError for anything else."""
    given = token if isinstance(token, dict) else {"content": token}
    if not isinstance(given.get("content"), str) or not given["content"]:
        raise ValueError(f"{TOKENIZER_CONFIG}: {where} must be a text, got {token!r}")
    known = ("content", "single_word", "lstrip", "rstrip", "normalized")
    flags = {"normalized": not special} | {k: given[k] for k in known if k in given}
    return AddedToken(**flags, special=special)


def add_tokens(
    backend: Backend, said: Mapping[str, Any], added: Mapping[str, Any],
    roles: Mapping[str, AddedToken], complete: bool,
) -> None:  # fmt: skip
    """Add the tokens that the files name; ValueError if one gets another id than its file says.

    What a `complete` tokenizer.json says of its own tokens stays.
    """
    fixed = {t.content for t in backend.get_added_tokens_decoder().values()} if complete else set()
    extra: list[AddedToken] = []
    for entry in ("additional_special_tokens", "extra_special_tokens"):
        many = said.get(entry) or []
        if not isinstance(many, list | dict):
            raise ValueError(f"{TOKENIZER_CONFIG}: {entry} must be a list of tokens, got {many!r}")
        extra += [as_token(t, entry) for t in (many.values() if isinstance(many, dict) else many)]
    special = {token.content for token in (*roles.values(), *extra)}
    about = "added_tokens_decoder"
    numbered = {
        str(i): as_token(t, about, t in special) for t, i in added.items() if t not in fixed
    }
    if about in said:
        flags = as_object(said[about], about)
        numbered = {
            i: as_token(t, about, isinstance(t, dict) and bool(t.get("special")))
            for i, t in flags.items()
        }
    for i, token in sorted(numbered.items(), key=lambda item: item[0].zfill(9)):
        backend.add_tokens([token])
        if (got := str(backend.token_to_id(token.content))) != i:
            raise ValueError(f"the added token {token.content!r} should have id {i}, not {got}")
    backend.add_special_tokens([t for t in (*roles.values(), *extra) if t.content not in fixed])
