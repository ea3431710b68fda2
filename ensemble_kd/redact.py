"""Secrets never leave: what is written, sent or printed goes through `redacted` first.

Credentials come in by the configuration, as parts of addresses (`postgresql://user:PASSWORD@host`,
`s3://KEY:SECRET@bucket`, `https://host/data?token=...`) and as values of keys that are named so
(`options: {api_key: ...}`), and by the environment. Where they are used they stay whole; a fingerprint covers
them whole. `secret_name` is the one list of such names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from typing import Any

MASK = "***"

WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
"""What a name is made of: `hfToken`, `HF_TOKEN` and `hf-token` are `hf` and `token`."""
ALWAYS = frozenset(
    "password passwords passwd passphrase passcode pwd secret secrets credential credentials cred creds auth "
    "authorization authentication apikey accesskey secretkey privatekey authkey authtoken accesstoken "
    "sessiontoken hftoken bearer jwt cookie cookies signature sig hmac".split()
)
"""Last words of a name that has a secret as its value, whatever stands before."""
JOINED = re.compile(
    r"(?:password|passwd|passphrase|secret|credentials?|apikey|accesskey|accesskeyid|secretkey|privatekey"
    r"|accesstoken|authtoken|sessiontoken|refreshtoken|bearertoken|hftoken)$"
)
"""The same in names that are written as one word."""
UNLESS = {
    "token": frozenset(
        "pad padding cls class type sep separator mask unk unknown bos eos start end stop first last next "
        "image text prompt special word sub by per use keep drop add max min num".split()
    ),
    "key": frozenset(
        "primary foreign sort sorting partition cache id input output label target text image state dict "
        "group by column join index row feature hidden map lookup sample query attention value batch json "
        "data metric hash bucket object field meta".split()
    ),
}
"""Last words that mean a secret unless one of these stands before: `hf_token`, but `pad_token`."""
SEVERAL = frozenset("api access secret private auth hf session".split())
"""Before `keys` and `tokens`, which are counts and lists of words elsewhere."""
CARRIERS = frozenset("value string text hash b64 base64 plain".split())
"""What a secret may be followed by: `token_value`. Not `token_type`, `password_file`, `key_id`."""

USER = re.compile(
    r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#\"'<>]+|[^\s/:@]*:(?!\d+(?:/|$))[^\s@]*)@", re.IGNORECASE
)
"""All before the last `@` of an address's host; or, of a password with a slash in it, before the first."""
PARAMETER = re.compile(r"(?<![\w.%-])([\w.%-]{1,100})(=)((?:[^&;,\s\"'<>:]|:(?!\s))+)")
"""`?token=...`, `&X-Amz-Signature=...`, and a database's `password=...`."""
QUOTED = re.compile(r"(?<![\w.-])([\w.-]{1,100})([\"']?\s*[:=]\s*)([\"'])((?:\\.|(?!\3).)+)\3")
"""`'api_key': '...'` in JSON and in what Python prints, `api_key="..."`, and `api_key: "..."` in YAML."""
PLAIN = re.compile(
    r"((?:^|[{,])[ \t]*)([\w.-]{1,100})(: ?)(?!missing)([^\s,\]}\"']+)(?=[,\]}]|[ \t]*$)", re.MULTILINE
)
"""`api_key: ...` in YAML, as it stands in the message of a file that cannot be parsed."""
TOLD = re.compile(r"^((?:--set )?(\w[\w.-]*): )(.*)$", re.MULTILINE)
"""What is said of a setting, which may be named like a secret: `model.options.api_key: ..., got '...'`."""
FOUND = re.compile(r"([\"'])(?:\\.|(?!\1).)+\1|(?<=\bgot )\S.*$")
HEADER = re.compile(r"(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+)[^\s\"']+", re.IGNORECASE)

VARIABLES = re.compile(
    r"(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|SECRETS|TOKEN|API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|ACCOUNT_KEY"
    r"|ACCESS_KEY_ID|CREDENTIALS?)$"
)
SHORTEST = 8
"""Characters of a variable's value that is looked for; a shorter one would mask words of another meaning."""
_known: set[str] = set()
"""Secrets of the configuration that are masked wherever they stand, as the environment's are."""
LEAST_DIGITS = 4
"""Of a number that may be a secret: a PIN is, `secret: 3` is not."""


def secret_name(name: str) -> bool:
    """Whether a key, parameter or option of this name has a secret as its value."""
    words = [word.lower() for word in WORDS.findall(name)]
    if words and words[-1] in CARRIERS and len(words) > 1:
        words.pop()
    if not words:
        return False
    *before, last = words
    if last in ALWAYS or JOINED.search(last) or words[-3:] == ["access", "key", "id"]:
        return True
    if last in UNLESS:
        return not before or before[-1] not in UNLESS[last]
    return last in ("keys", "tokens") and bool(before) and before[-1] in SEVERAL


def redacted(value: Any) -> Any:
    """The same structure of dicts, lists and strings with every secret in it masked.

    Masked are user and password of an address, values of parameters and keys that are named like a secret,
    and the values of the environment's secrets (`AWS_SECRET_ACCESS_KEY`, `HF_TOKEN`, ...) wherever
    they stand. The `options` of a block stay where its `public_options` name them.
    """
    return _redacted(value, sorted({*_of_environment(), *_known}, key=len, reverse=True))


def redacted_options(options: dict[str, Any], public: Collection[str]) -> dict[str, Any]:
    """The options of a custom model as they are written: masked, but for those that the user names."""
    return {
        name: value if name in public else redacted({name: value})[name] for name, value in options.items()
    }


def redacted_model(model: dict[str, Any]) -> dict[str, Any]:
    """A model's block as its folder holds it: a custom one's options are the user's, all else stays whole.

    Fields of a transformers architecture may have any name (`video_token`), and are no secrets.
    """
    found: dict[str, Any] = redacted(model) if model.get("name") == "custom" else model
    return found


def redacted_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """A member's settings as its folder holds them."""
    return {**redacted(settings), "model": redacted_model(settings["model"])}


def mask_everywhere(value: Any) -> None:
    """From now on mask the texts that `redacted` masks in a block wherever they stand: errors repeat them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if _named(name):
                _known.update(text for text in _texts(inner) if len(text) >= SHORTEST)
            else:
                mask_everywhere(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            mask_everywhere(inner)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _redacted(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        return _text(value, secrets)
    if isinstance(value, dict):
        public = value.get("public_options")
        found = {
            _redacted(key, secrets): _masked(inner) if _named(key) else _redacted(inner, secrets)
            for key, inner in value.items()
        }
        if isinstance(public, list | tuple) and isinstance(value.get("options"), dict):
            found["options"] |= {name: x for name, x in value["options"].items() if name in public}
        return found
    if isinstance(value, list):
        return [_redacted(inner, secrets) for inner in value]
    if isinstance(value, tuple):
        return tuple(_redacted(inner, secrets) for inner in value)
    return value


def _masked(value: Any) -> Any:
    """What a key with a secret's name holds: every text and every long number in it is one."""
    if isinstance(value, dict):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_masked(inner) for inner in value)
    if isinstance(value, str):
        return MASK if value else value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return MASK if number and len(str(value).lstrip("-").replace(".", "")) >= LEAST_DIGITS else value


def _text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    if ":" in text:
        text = PLAIN.sub(_mask_plain, text)
        text = TOLD.sub(_mask_told, text)
    if "'" in text or '"' in text:
        text = QUOTED.sub(_mask_quoted, text)
    if "=" in text:
        text = PARAMETER.sub(_mask_parameter, text)
    if "://" in text:
        text = USER.sub(rf"\1{MASK}@", text)
    return HEADER.sub(rf"\1{MASK}", text)


def _mask_parameter(match: re.Match[str]) -> str:
    name, sign, value = match.groups()
    return f"{name}{sign}{MASK if secret_name(name) else value}"


def _mask_plain(match: re.Match[str]) -> str:
    before, name, sign, value = match.groups()
    return f"{before}{name}{sign}{MASK if secret_name(name) else value}"


def _mask_told(match: re.Match[str]) -> str:
    before, name, told = match.groups()
    return before + (FOUND.sub(MASK, told) if secret_name(name) else told)


def _mask_quoted(match: re.Match[str]) -> str:
    name, between, quote, _ = match.groups()
    return f"{name}{between}{quote}{MASK}{quote}" if secret_name(name) else match[0]


def _named(key: Any) -> bool:
    return isinstance(key, str) and secret_name(key)


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if VARIABLES.search(name) and len(value) >= SHORTEST:
            yield value
