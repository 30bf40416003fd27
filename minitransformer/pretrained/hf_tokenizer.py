"""A folder's tokenizer, set up as the transformers class that its files name would be."""

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
"""The classes that can be followed (without "Fast") and their kinds of vocabulary. A class for "any"
takes tokenizer.json as it is."""
IMPLIED = {"bert": "WordPiece", "gpt2": "BPE", "t5": "Unigram"}
"""The kind of the class that a family implies if none is named."""
SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")
PROBE = "Éa ÀB  \tdon't 12中文\u200b\x01 İ½ ﬁ x_y"


def read_tokenizer(files: Mapping[str, bytes], where: str, max_length: int) -> Tokenizer:
    """The tokenizer from tokenizer.json, or from vocab.txt, or from vocab.json and merges.txt.

    The settings in the other files have the effect that they have on transformers' AutoTokenizer.
    ValueError for a setting that is not supported and for files that contradict each other.
    """
    complete = "tokenizer.json" in files
    said, config = parse(files, TOKENIZER_CONFIG), parse(files, "config.json")
    if "added_tokens_decoder" not in said:
        said |= parse(files, TOKENS_MAP)
    named = said.get("tokenizer_class") or config.get("tokenizer_class")
    kind = CLASSES.get(str(named or "TokenizersBackend").removesuffix("Fast"))
    if kind is None:
        known = f"known: {', '.join(CLASSES)}"
        raise ValueError(f"{TOKENIZER_CONFIG}: tokenizer_class {named!r} is not known; {known}")
    check_table(TOKENIZER_CONFIG, said)
    backend, found = read_vocabulary(files, said)
    if kind not in ("any", found):
        raise ValueError(f"{TOKENIZER_CONFIG}: a {named} has {kind}, the vocabulary is {found}")
    if not complete or (not named and found == IMPLIED.get(config.get("model_type", ""))):
        kind = found
    usual = ENTRIES["their special tokens"].get(kind, {})
    tokens = {role: t for role, t in usual.items() if backend.token_to_id(t) is not None}
    tokens |= {role: said[role] for role in ROLES if role in said}
    roles = {role: as_token(t, role) for role, t in tokens.items() if t is not None}
    add_tokens(backend, said, parse(files, "added_tokens.json"), roles, complete)
    apply_settings(backend, kind, found, said, roles, complete)
    names = {role: token.content for role, token in roles.items()} or None
    sides = (said.get(f"{part}_side") for part in ("padding", "truncation"))
    return Tokenizer(backend, max_length, names, *sides)


def longest(files: Mapping[str, bytes], max_length: int) -> int:
    """The most ids of a text: `max_length`, or fewer if the tokenizer's files say so."""
    limit = parse(files, TOKENIZER_CONFIG).get("model_max_length") or max_length
    if type(limit) not in (int, float) or limit < 3:
        raise ValueError(f"{TOKENIZER_CONFIG}: model_max_length {limit!r} is not a number of ids")
    return int(min(max_length, limit))


def read_vocabulary(files: Mapping[str, bytes], said: dict[str, Any]) -> tuple[Backend, str]:
    """The tokenizer before any settings, and its kind; ValueError if there is none."""
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
    """Split and frame texts as the class does; ValueError if tokenizer.json (`complete`) disagrees."""
    settings = [entry for entry in SETTINGS if entry in said]
    if kind == "any" and not settings:
        return
    before = plan(backend)
    names = {role: token.content for role, token in roles.items()}
    ends = [names.get(f"{role}_token", "") for role in ("cls", "sep", "bos", "eos")]
    cls, sep, bos, eos = (end if backend.token_to_id(end) is not None else "" for end in ends)
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
        space = not bos or said.get("add_prefix_space", True)  # T5 has no start, and always a space
        spaces = pre_tokenizers.Metaspace(prepend_scheme="always" if space else "never")
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
        frame = [(token, backend.token_to_id(token)) for token in (bos, eos) if token]
        backend.post_processor = processors.TemplateProcessing(
            f"{bos} $A {eos}".strip(), special_tokens=frame
        )
    if complete and (kind == "any" or not settings) and plan(backend) != before:
        entries = [f"{e}={said[e]!r}" for e in said if e in (*SETTINGS, *ROLES)]
        raise ValueError(
            f"tokenizer.json splits text in another way than {TOKENIZER_CONFIG} says "
            f"({', '.join(entries) or 'nothing'}); make both say the same, or name the class "
            "PreTrainedTokenizerFast, which takes tokenizer.json as it is"
        )


def plan(backend: Backend) -> tuple[Any, ...]:
    """How a tokenizer splits a text before looking up its vocabulary, and the frame it adds."""
    words = PROBE if backend.normalizer is None else backend.normalizer.normalize_str(PROBE)
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(words)]
    return words, backend.encode("").ids


def as_token(token: Any, where: str = "a token", special: bool = True) -> AddedToken:
    """A token that a file gives as a text or with its flags; ValueError for anything else."""
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

    The flags of tokens that tokenizer.json (`complete`) has already stay as they are.
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
