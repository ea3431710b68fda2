"""A custom model that cannot be made without its secrets."""

from __future__ import annotations

from typing import Any

from torch import nn

PLANTED = "Sesame-0pen"
"""Begins every planted secret, and stands nowhere else."""

SECRETS: dict[str, Any] = {
    "api_key": f"{PLANTED}-1",
    "apiKey": f"{PLANTED}-2",
    "auth": [f"{PLANTED}-3", {"user": f"{PLANTED}-4"}],
    "hf_token": f"{PLANTED}-5",
    "access_token": f"{PLANTED}-6",
    "token": f"{PLANTED}-7",
    "secret": f"{PLANTED}-8",
    "password": f"{PLANTED}-9",
    "db_passwd": f"{PLANTED}-10",
    "credentials": {"id": f"{PLANTED}-11", "inner": {"value": f"{PLANTED}-12"}},
    "headers": {
        "Authorization": f"Bearer {PLANTED}-13",
        "Cookie": f"{PLANTED}-14",
        "X-Api-Key": f"{PLANTED}-15",
    },
    "client_secret": f"{PLANTED}-16",
    "privateKey": f"{PLANTED}-17",
    "session_token": f"{PLANTED}-18",
    "AccountKey": f"{PLANTED}-19",
    "pwd": f"{PLANTED}-20",
    "refreshToken": f"{PLANTED}-21",
    "database": f"postgresql://user:{PLANTED}-22@db/x",
    "mirrors": [f"https://h/w?X-Amz-Signature={PLANTED}-23&rows=1", {"password": f"{PLANTED}-24"}],
    "connection": f"host=db password={PLANTED}-25 dbname=x",
    "webhook": f"https://h/hook?key={PLANTED}-26",
    "header": f"Authorization: Basic {PLANTED}-27",
    "as_json": '{"access_key": "' + PLANTED + '-28"}',
}
INNOCENT: dict[str, Any] = {"num_keys": 4, "token_type": "word", "max_tokens": 512, "tokenizer": "plain"}


def net(num_classes: int, input_shape: tuple[int, ...], key: int = 0, **options: Any) -> nn.Module:
    """`key` hidden units, though its name is that of a secret."""
    if options != SECRETS | INNOCENT:
        raise ValueError(f"other options than were given: {options}")
    return nn.Sequential(nn.Linear(input_shape[0], key), nn.ReLU(), nn.Linear(key, num_classes))
