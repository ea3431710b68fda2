"""The page of soft targets: rows as they are, and what each teacher says of them at three temperatures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemble_kd.data.tokenize import MOST_BYTES, TOKENIZER_FILE
from ensemble_kd.errors import ArtifactError
from ensemble_kd.report.pieces import table
from ensemble_kd.safe_files import parse_json, problem_inside, read_plain
from ensemble_kd.targets import target_of
from ensemble_kd.ui.folders import Run
from ensemble_kd.ui.pieces import esc, page, url
from ensemble_kd.ui.said import TEMPERATURES, Said, Setting, of_store, of_test, setting, shards
from ensemble_kd.ui.texts import texts_of

TABS = {
    "disagree": "teachers disagree most",
    "differ": "student and ensemble differ",
    "random": "random",
}
PER_PAGE = 8
MOST_COLOURED = 5
"""Classes of an example that have a colour of their own."""
MOST_NUMBERS = 24
COLOURS = ("#2f80d0", "#d1495b", "#2a9d8f", "#c28a12", "#7b61c9")
REST = "#8a8f98"


def examples_page(run: Run, query: Mapping[str, str]) -> str:
    """The page; `query` has `tab`, `shard`, `first` and `seed`."""
    tab = query.get("tab", "disagree")
    tab = tab if tab in TABS else "disagree"
    main = f"<ul class=tabs>{''.join(_tab(run, name, tab) for name in TABS)}</ul>"
    try:
        main += _rows(run, tab, query)
    except (ArtifactError, OSError) as error:
        main += f"<p class=wrong>{esc(error, 400)}</p>"
    except Exception as error:  # a stranger's manifest may hold anything at any place
        main += f"<p class=wrong>The rows cannot be shown: damaged ({esc(type(error).__name__)})</p>"
    return page(f"{run.name}: soft targets", main, run.name)


def _tab(run: Run, name: str, chosen: str) -> str:
    current = ' aria-current="page"' if name == chosen else ""
    return f'<li><a href="{url("/examples", name=run.name, tab=name)}"{current}>{TABS[name]}</a></li>'


def _rows(run: Run, tab: str, query: Mapping[str, str]) -> str:
    found = setting(run)
    first, seed = _whole(query.get("first"), 10**9), _whole(query.get("seed"), 10**9)
    links: list[tuple[str, dict[str, Any]]] = []
    if tab == "differ":
        said = of_test(found, first, PER_PAGE)
        text = (
            f"Of {said.total:,} test rows first those where the shipped student and the ensemble differ most"
        )
        given: dict[str, Any] = {}
    else:
        count = len(shards(run)[2])
        if not count:
            raise ArtifactError("the store has no shard")
        shard = min(_whole(query.get("shard"), 10**9), count - 1)
        given = {"shard": shard, "seed": seed} if tab == "random" else {"shard": shard}
        said = of_store(found, shard, seed if tab == "random" else None, first, PER_PAGE)
        how = "in random order" if tab == "random" else "the most disputed first"
        text = f"Rows of shard {shard + 1} of {count} of the transfer set ({said.total:,} rows), {how}"
        if shard:
            links.append(("previous shard", given | {"shard": shard - 1}))
        if shard + 1 < count:
            links.append(("next shard", given | {"shard": shard + 1}))
        if tab == "random":
            links.append(("others at random", given | {"seed": seed + 1}))
    if first:
        links.append(("back", given | {"first": max(first - PER_PAGE, 0)}))
    if first + PER_PAGE < said.total:
        links.append(("more", given | {"first": first + PER_PAGE}))
    words = vocabulary(found) if found.info.kind == "text" else None
    hashed = found.info.kind == "text" and words is None
    texts = texts_of(found, said.ids, tab == "differ") if hashed else [None] * len(said.rows)
    measure = "a standard deviation" if found.values else "a Jensen-Shannon divergence at T = 1"
    text += "" if tab == "random" else f" (by {measure})"
    main = f"<p class=quiet>{text}. {esc(_averaged(found))}</p>"
    main += "".join(_example(found, said, i, words, texts[i]) for i in range(len(said.rows)))
    end = " ".join(
        f'<a href="{url("/examples", name=run.name, tab=tab, **each)}">{title}</a>' for title, each in links
    )
    return main + f"<nav>{end}</nav>"


def _averaged(found: Setting) -> str:
    """What the ensemble's line is, where it is no plain mean of the lines above it."""
    mean, parts = found.mean, []
    if mean.calibration is not None and not found.values:
        own = ", ".join(f"{t:.3g}" for t in mean.calibration[:12])
        parts.append(f"each teacher's logits divided by its own temperature first ({own})")
    if mean.weights is not None:
        parts.append(f"weights {', '.join(f'{w:.3g}' for w in mean.weights[:12])}")
    return f"The ensemble is the {mean.how} mean as this run takes it: {'; '.join(parts)}." if parts else ""


def _whole(text: str | None, most: int) -> int:
    """A number of the query; 0 for what is none."""
    good = text is not None and text.isascii() and text.isdigit() and len(text) < 12
    return min(int(text or "0"), most) if good else 0


# ------------------------------------------------------------------------------------------ one example


def _example(found: Setting, said: Said, row: int, words: dict[int, str] | None, text: str | None) -> str:
    label = said.labels[row]
    known = label >= 0 if not found.values else bool(np.isfinite(label).all())
    shown = ", ".join(f"{value:.6g}" for value in np.ravel(label).tolist()) if found.values else ""
    name = "no label" if not known else shown or _name(found, int(label))
    where = f"row {said.rows[row]}, id {esc(said.ids[row], 60)}"
    head = f"<p><b>{esc(name, 80)}</b> <span class=quiet>{where}</span></p>"
    given = input_html(found, said.inputs[row], words, text)
    return (
        f"<section class=example><div class=input>{head}{given}</div>"
        f"<div class=said>{_told(found, said, row)}</div></section>"
    )


def _told(found: Setting, said: Said, row: int) -> str:
    if found.values:
        lines = [
            ("", [esc(who, 60), *(f"{value:.6g}" for value in said.at(row, i, 1.0).tolist())])
            for i, who in enumerate(said.names)
        ]
        fields = target_of(found.info.target).output_names(found.info.class_names)
        return table(["", *(esc(name, 60) for name in fields)], lines)
    every = [[said.at(row, i, t) for t in TEMPERATURES] for i in range(len(said.names))]
    colours = _colours(np.array([each[0] for each in every]))
    legend = "".join(
        f'<span><span class=dot style="background:{colour}"></span>{esc(_name(found, c), 40)}</span>'
        for c, colour in colours.items()
    )
    rest = f'<span><span class=dot style="background:{REST}"></span>others</span>'
    legend += rest if len(found.info.class_names) > len(colours) else ""
    lines = [
        ("", [esc(who, 60), *(_bar(found, p, colours) for p in each)])
        for who, each in zip(said.names, every, strict=True)
    ]
    return f"<p class=legend>{legend}</p>" + table(["", *(f"T = {t:g}" for t in TEMPERATURES)], lines)


def _colours(p: np.ndarray) -> dict[int, str]:
    """The classes that somebody gives most to, (names, C) at T = 1, and their colours."""
    order = np.argsort(-p.max(axis=0), kind="stable")[:MOST_COLOURED]
    return {int(c): colour for c, colour in zip(order, COLOURS, strict=False)}


def _bar(found: Setting, p: np.ndarray, colours: dict[int, str]) -> str:
    """A bar of 100%, and the most probable class."""
    best = int(p.argmax())
    parts, left = "", 0.0
    for c, colour in colours.items():
        wide = 100 * float(p[c])
        parts += f'<rect x="{left:.2f}" width="{wide:.2f}" height="8" fill="{colour}"/>'
        left += wide
    parts += (
        f'<rect x="{left:.2f}" width="{max(100 - left, 0):.2f}" height="8" fill="{REST}" opacity="0.35"/>'
    )
    title = ", ".join(f"{esc(_name(found, c), 40)} {100 * float(p[c]):.1f}%" for c in colours)
    svg = (
        f'<svg viewBox="0 0 100 8" width="100%" height="8" preserveAspectRatio="none" role="img" '
        f'aria-label="{title}"><title>{title}</title>{parts}</svg>'
    )
    return f"{svg}{esc(_name(found, best), 24)}: {100 * float(p[best]):.1f}%"


def _name(found: Setting, label: int) -> str:
    names = found.info.class_names
    return str(names[label]) if label < len(names) else f"class {label}"


# ------------------------------------------------------------------------------------------ the input


def input_html(
    found: Setting, value: np.ndarray, words: dict[int, str] | None, text: str | None = None
) -> str:
    """An image as pixels, a text as text where the run holds its words, numbers as a table."""
    if found.info.kind == "image":
        return f'<img alt="{" x ".join(map(str, value.shape))} pixels" src="{png(value)}">'
    if text is not None:
        return f"<p class=text>{esc(text)}</p>"
    if found.info.kind == "text":
        tokens = [int(t) for t in value if t]
        if words is None:
            return (
                f"<p class=quiet>{len(tokens)} hashed n-grams: the run holds their numbers, not the words. "
                "The id is the number of the row in your data.</p>"
            )
        return f"<p class=text>{esc(text_of(tokens, words))}</p>"
    columns = found.info.preprocess.get("columns", {}).get("input")
    names = columns if isinstance(columns, list) and len(columns) == len(value) else range(len(value))
    rows = [("", [esc(n, 60), f"{v:.5g}"]) for n, v in zip(names, value[:MOST_NUMBERS], strict=False)]
    more = f"<p class=quiet>and {len(value) - MOST_NUMBERS} more</p>" if len(value) > MOST_NUMBERS else ""
    return table(["", ""], rows, header=False) + more


def png(pixels: np.ndarray) -> str:
    """(H, W, C) uint8 as an address that holds the picture. Two channels, or more than four: the first."""
    from PIL import Image

    shown = pixels if pixels.ndim == 3 and pixels.shape[2] in (3, 4) else pixels[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def vocabulary(found: Setting) -> dict[int, str] | None:
    """Pieces by number, from the tokenizer that lies with the data; None for hashed n-grams."""
    name = f"{found.data}/{TOKENIZER_FILE}"
    if problem_inside(found.run.folder, name) is not None:
        return None
    raw = parse_json(read_plain(found.run.folder / name, MOST_BYTES), name)
    known = raw["model"]["vocab"]
    if isinstance(known, list):  # of a unigram model: pieces and their scores
        return {i: str(entry[0]) for i, entry in enumerate(known)}
    found_words = {int(i): str(piece) for piece, i in known.items()}
    return found_words | {int(each["id"]): str(each["content"]) for each in raw.get("added_tokens", [])}


def text_of(tokens: list[int], words: dict[int, str]) -> str:
    """The text again, as far as its pieces tell: WordPiece's `##`, SentencePiece's and GPT-2's marks of
    a space."""
    pieces = [words.get(token - 1, "?") for token in tokens]  # 0 is padding
    if any(piece[:1] in "▁Ġ" for piece in pieces if piece):
        return "".join(pieces).replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n").strip()
    return " ".join(pieces).replace(" ##", "")
