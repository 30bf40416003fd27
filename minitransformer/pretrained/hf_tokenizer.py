"""A folder's tokenizer: what its files say, as the class of transformers' that they name follows it."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from ..data.tokenizers import ROLES, Tokenizer, framed, word_pieces
from ..model.config import TransformerConfig
from .hf_config import parse, require, warn_of_unknown, words

TOKENIZER_CONFIG, TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_FILES = (TOKENIZER_CONFIG, TOKENS_MAP, "added_tokens.json", "tokenizer.json", "vocab.txt",
                   "vocab.json", "merges.txt")  # fmt: skip
CLASSES = {
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), "WordPiece"),
    "GPT2Tokenizer": "BPE",
    "T5Tokenizer": "Unigram",
    **dict.fromkeys(("PreTrainedTokenizer", "TokenizersBackend"), ""),
}
"""The classes that are followed, without "Fast", and the kind of vocabulary each has; the last two
take tokenizer.json as it is."""
USUAL = {
    "WordPiece": {f"{t}_token": f"[{t.upper()}]" for t in ("pad", "unk", "cls", "sep", "mask")},
    "BPE": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "": {},
}
"""The special tokens of a class, where the files name no others."""
PARTS = {
    "do_lower_case": ("normalizer", "lowercase", (True, False)),
    "strip_accents": ("normalizer", "strip_accents", (True, False, None)),
    "tokenize_chinese_chars": ("normalizer", "handle_chinese_chars", (True, False)),
    "add_prefix_space": ("pre_tokenizer", "add_prefix_space", (True, False)),
}
"""Entries that set a part of tokenizer.json."""
SIDES = ("right", "left")
ONLY: dict[str, tuple[Any, ...]] = {
    "padding_side": SIDES,
    "truncation_side": SIDES,
    "add_bos_token": (False, None),
    "add_eos_token": (False, None),
    "split_special_tokens": (False,),
    "do_basic_tokenize": (True,),
    "never_split": (None, []),
    "wordpieces_prefix": ("##",),
    "auto_map": (None,),
} | {entry: values for entry, (_, _, values) in PARTS.items()}
"""Entries of tokenizer_config.json with the only values that are supported."""
LISTS = ("additional_special_tokens", "extra_special_tokens")
HARMLESS = words("""
    name_or_path special_tokens_map_file tokenizer_file vocab_file merges_file processor_class
    chat_template model_input_names max_length max_len stride truncation_strategy pad_to_multiple_of
    pad_token_type_id clean_up_tokenization_spaces errors legacy sp_model_kwargs extra_ids use_fast
    from_slow backend is_local local_files_only tokenizer_class model_max_length added_tokens_decoder
""")
"""Entries that change no id, or that are read elsewhere in this module."""
PROBE = "Éa ÀB  \tdon't 12中文\u200b\x01 İ½ ﬁ x_y"


def read_tokenizer(files: Mapping[str, bytes], where: str, max_length: int) -> Tokenizer:
    """The tokenizer from tokenizer.json, or from vocab.txt, or from vocab.json and merges.txt.

    The settings beside them are followed as transformers' AutoTokenizer does; ValueError for one that
    cannot be, and for files that contradict each other.
    """
    said = parse(files, TOKENIZER_CONFIG)
    for entry, allowed in ONLY.items():
        if entry in said:
            require(TOKENIZER_CONFIG, entry, said[entry], allowed)
    if "added_tokens_decoder" not in said:
        said |= parse(files, TOKENS_MAP)
    config = parse(files, "config.json")
    named = said.get("tokenizer_class") or config.get("tokenizer_class")
    cls = str(named).removesuffix("Fast")
    if named and cls not in CLASSES:
        raise ValueError(
            f"{TOKENIZER_CONFIG}: tokenizer_class {named!r} is not known; known: {', '.join(CLASSES)}"
        )
    kind = CLASSES.get(cls, "")
    if "tokenizer.json" in files:
        backend = from_json(files["tokenizer.json"], said, kind, config if not named else {})
    elif "vocab.txt" in files and kind in ("WordPiece", ""):
        kind = "WordPiece"
        backend = Tokenizer.from_vocab(text_of(files, "vocab.txt")).backend
        own = class_pipeline(kind, said, backend)
        backend.normalizer, backend.post_processor = own.normalizer, own.post_processor
        backend.model.unk_token = own.model.unk_token
    elif {"vocab.json", "merges.txt"} <= files.keys() and kind in ("BPE", ""):
        kind = "BPE"
        pair = (text_of(files, name) for name in ("vocab.json", "merges.txt"))
        backend = Tokenizer.from_merges(*pair).backend
        backend.pre_tokenizer = class_pipeline(kind, said, backend).pre_tokenizer
    else:
        raise ValueError(
            "there is neither a tokenizer.json nor a vocab.txt, nor vocab.json with merges.txt, for a "
            f"{named or 'tokenizer'} (a spiece.model is not read; AutoTokenizer.from_pretrained"
            "(folder).save_pretrained(folder) of transformers writes a tokenizer.json)"
        )
    roles = roles_of(said, kind)
    fixed = backend.get_added_tokens_decoder() if "tokenizer.json" in files else {}
    fixed = {token.content for token in fixed.values()}
    add_tokens(backend, said, parse(files, "added_tokens.json"), roles, fixed)
    names = {role: content(token) for role, token in roles.items()}
    sides = [said.get(f"{side}_side") for side in ("padding", "truncation")]
    limit = said.get("model_max_length", max_length)
    if type(limit) not in (int, float) or limit < 3:
        raise ValueError(f"{TOKENIZER_CONFIG}: model_max_length {limit!r} is not a number of ids")
    warn_of_unknown(TOKENIZER_CONFIG, said, {*HARMLESS, *ONLY, *LISTS, *ROLES})
    return Tokenizer(backend, int(min(max_length, limit)), names or None, *sides)


def text_of(files: Mapping[str, bytes], name: str) -> str:
    """The text of a file; ValueError if it is not UTF-8."""
    try:
        return files[name].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error})") from error


def from_json(raw: bytes, said: Mapping[str, Any], kind: str, config: Mapping[str, Any]) -> Backend:
    """tokenizer.json with the settings beside it; ValueError if they contradict each other."""
    try:
        stored = json.loads(raw)
        for part in ("padding", "truncation"):  # only their sides count: batches are padded here
            if about := stored.pop(part, None):
                names = {f"{part}_side": about.get("direction", "Right").lower()}
                names |= {"pad_token": about["pad_token"]} if part == "padding" else {}
                said |= {entry: value for entry, value in names.items() if entry not in said}
        backend = Backend.from_str(json.dumps(stored))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"tokenizer.json cannot be read ({error})") from error
    found = stored["model"].get("type", kind)
    implied = {"bert": "WordPiece", "gpt2": "BPE", "t5": "Unigram"}.get(
        config.get("model_type", "")
    )
    if kind not in ("", found):
        named = said.get("tokenizer_class", kind)
        raise ValueError(f"{TOKENIZER_CONFIG}: a {named} has {kind}, tokenizer.json holds {found}")
    if not kind and implied == found:
        kind = implied
    edited = stored | {part: dict(stored[part] or {}) or None for part, _, _ in PARTS.values()}
    for entry, (part, key, _) in PARTS.items():
        if entry in said and key in (edited[part] or {}):
            edited[part][key] = said[entry]
    follows = backend if edited == stored else Backend.from_str(json.dumps(edited))
    if (plan(class_pipeline(kind, said, follows)) if kind else plan(backend)) != plan(follows):
        entries = [e for e in ("tokenizer_class", *PARTS, *ROLES) if e in said]
        given = ", ".join(f"{e}={said[e]!r}" for e in entries) or "nothing"
        raise ValueError(
            f"tokenizer.json prepares text in another way than {TOKENIZER_CONFIG} says ({given}); let "
            "both say the same, or name PreTrainedTokenizerFast, which takes tokenizer.json as it is"
        )
    return follows


def class_pipeline(kind: str, said: Mapping[str, Any], stored: Backend) -> Backend:
    """How the class prepares and frames a text, whatever its vocabulary."""
    names = {role: content(token) for role, token in roles_of(said, kind).items()}
    if kind == "WordPiece":
        own = word_pieces(stored.get_vocab(), unk=names["unk_token"])
        own.normalizer = normalizers.BertNormalizer(
            lowercase=said.get("do_lower_case", True), strip_accents=said.get("strip_accents"),
            handle_chinese_chars=said.get("tokenize_chinese_chars", True),
        )  # fmt: skip
        own.post_processor = framed(own, names["cls_token"], names["sep_token"])
        return own
    own = Backend(stored.model)
    if kind == "BPE":
        space = said.get("add_prefix_space", False)
        own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
        if stored.post_processor is not None:
            own.post_processor = stored.post_processor
        return own
    if stored.normalizer is not None:
        own.normalizer = stored.normalizer
    spaces = pre_tokenizers.Metaspace(prepend_scheme="always")
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    if (end := stored.token_to_id(names.get("eos_token", ""))) is not None:
        own.post_processor = processors.TemplateProcessing(
            "$A </s>", special_tokens=[("</s>", end)]
        )
    return own


def plan(backend: Backend) -> tuple[Any, ...]:
    """What a tokenizer does with a text before it looks at its vocabulary, and its frame."""
    text = PROBE if backend.normalizer is None else backend.normalizer.normalize_str(PROBE)
    words: Any = text
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    unknown = (
        backend.model.unk_token if hasattr(backend.model, "max_input_chars_per_word") else None
    )
    return words, unknown, backend.encode("").ids


def content(token: Any) -> str:
    """The text of a special token, which a file gives as it is or with its flags."""
    return token["content"] if isinstance(token, dict) else token


def flags(token: Any, special: bool = True) -> AddedToken:
    """A token with its flags."""
    known = ("single_word", "lstrip", "rstrip", "normalized")
    given = {k: bool(token[k]) for k in known if k in token} if isinstance(token, dict) else {}
    return AddedToken(content(token), special=special, **({"normalized": not special} | given))


def roles_of(said: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The special tokens by what they are for; ValueError for one that is no text."""
    roles = USUAL[kind] | {role: said[role] for role in ROLES if role in said}
    for role, token in roles.items():
        if token is not None and not (isinstance(token, str | dict) and content(token)):
            raise ValueError(f"{TOKENIZER_CONFIG}: {role} must be a token, got {token!r}")
    return {role: token for role, token in roles.items() if token is not None}


def add_tokens(
    backend: Backend, said: Mapping[str, Any], added: Mapping[str, Any], roles: Mapping[str, Any],
    fixed: Collection[str],
) -> None:  # fmt: skip
    """Add what the files name and is not `fixed` already; ValueError if a token gets another id."""
    lists = [said.get(name) or [] for name in LISTS]
    extra = [t for given in lists for t in (given.values() if isinstance(given, dict) else given)]
    special = {content(t) for t in (*roles.values(), *extra)}
    numbered = {int(i): (t, t["special"]) for i, t in said.get("added_tokens_decoder", {}).items()}
    if "added_tokens_decoder" not in said:
        numbered = {int(i): (t, t in special) for t, i in added.items() if t not in fixed}
    for i, (token, is_special) in sorted(numbered.items()):
        backend.add_tokens([flags(token, is_special)])
        if (found := backend.token_to_id(content(token))) != i:
            raise ValueError(f"the added token {content(token)!r} should have id {i}, not {found}")
    named = [t for t in (*roles.values(), *extra) if content(t) not in fixed]
    backend.add_special_tokens([flags(t) for t in named])


def write_tokenizer_config(tokenizer: Tokenizer, config: TransformerConfig) -> dict[str, Any]:
    """The tokenizer_config.json: the special tokens that the tokenizer has, and where it pads and cuts."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": min(tokenizer.max_length, config.max_len),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        **tokenizer.roles,
    }
