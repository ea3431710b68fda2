HEADERS: dict[str, str] = {}


def render(schema, needs_token):
    return b"<!doctype html>"
