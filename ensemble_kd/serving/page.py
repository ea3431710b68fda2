"""GET /: one page to try the model with, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

from ensemble_kd.serving.schema import RequestSchema
from ensemble_kd.targets import target_of

MOST_SHOWN = 200
"""Words of a column that its box offers."""
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --line: #d4d9df; --paper: #fff;
  --back: #f4f6f8; --mark: #0b63c5; --on-mark: #fff; --track: #e3e8ee; --wrong: #a4161a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3abb5; --line: #3a424c;
  --paper: #1b2026; --back: #12161a; --mark: #7db4ff; --on-mark: #0d1420; --track: #2c343d;
  --wrong: #ff9a9a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 44rem; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { font-size: 1.4rem; margin: 0; }
p { margin: .25rem 0; }
.soft { color: var(--soft); }
form, #result, details { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1.1rem; margin-top: 1.1rem; }
label { display: block; font-weight: 600; margin-bottom: .3rem; }
.field + .field { margin-top: .9rem; }
textarea, input { width: 100%; padding: .5rem .6rem; font: inherit; color: inherit;
  background: var(--back); border: 1px solid var(--line); border-radius: .4rem; }
textarea { min-height: 5.5rem; resize: vertical; }
canvas { display: block; margin-top: .7rem; width: 8rem; image-rendering: pixelated; background: #000;
  border-radius: .3rem; }
button { margin-top: 1rem; padding: .5rem 1.3rem; font: inherit; font-weight: 600; color: var(--on-mark);
  background: var(--mark); border: 0; border-radius: .4rem; cursor: pointer; }
button:disabled { opacity: .6; cursor: wait; }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
#label { font-size: 1.3rem; font-weight: 700; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; margin-top: .6rem; }
th, td { padding: .2rem 0; text-align: left; font-weight: 400; }
th { width: 30%; padding-right: .8rem; overflow-wrap: anywhere; }
td:last-child { width: 4.8rem; text-align: right; font-variant-numeric: tabular-nums; }
.track { height: .75rem; background: var(--track); border-radius: .4rem; overflow: hidden; }
.bar { height: 100%; background: var(--mark); }
.wrong { color: var(--wrong); }
pre { overflow-x: auto; margin: .6rem 0 0; font-size: .85rem; }
#problem { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
#problem:empty { display: none; }
summary { cursor: pointer; font-weight: 600; }
[hidden] { display: none; }
"""

SCRIPT = r"""
"use strict";
const model = JSON.parse(document.getElementById("model").textContent);
const at = id => document.getElementById(id);
let names = null, pixels = null;

async function ask(path, options = {}) {
  const headers = {...options.headers};
  if (model.token) headers.Authorization = "Bearer " + at("token").value;
  const answer = await fetch(path, {...options, headers});
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.problems.join("\n"));
  return found;
}

function row() {
  if (model.kind === "text")
    return Object.fromEntries(model.columns.map((name, i) => [name, at("text" + i).value]));
  if (model.kind === "image") {
    if (!pixels) throw new Error("choose an image first");
    return {[model.columns[0]]: pixels};
  }
  if (model.kind === "table")
    return Object.fromEntries(model.columns.map((name, i) => {
      const given = at("cell" + i).value.trim();
      if (given === "") return [name, null];
      if (model.words[i]) return [name, given];
      if (!Number.isFinite(Number(given))) throw new Error(name + ": " + given + " is not a number");
      return [name, Number(given)];
    }));
  const parts = at("numbers").value.split(/[\s,;]+/).filter(part => part);
  const wrong = parts.find(part => !Number.isFinite(Number(part)));
  if (wrong !== undefined) throw new Error(wrong + " is not a number");
  if (parts.length !== model.numbers)
    throw new Error(parts.length + " numbers, the model takes " + model.numbers);
  const values = parts.map(Number);
  if (model.listed) return {[model.columns[0]]: values};
  return Object.fromEntries(model.columns.map((name, i) => [name, values[i]]));
}

function base64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/* Scaled to the model's size and sent as raw pixels; grey as ITU-R 601, like Pillow's. */
function read(url) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onerror = () => failed(new Error("the browser cannot read this image"));
    image.onload = () => {
      const [height, width, channels] = model.shape, canvas = at("canvas");
      canvas.width = width; canvas.height = height; canvas.hidden = false;
      const context = canvas.getContext("2d", {willReadFrequently: true});
      context.drawImage(image, 0, 0, width, height);
      const rgba = context.getImageData(0, 0, width, height).data;
      const raw = new Uint8Array(width * height * channels);
      for (let i = 0; i < width * height; i++) {
        const [r, g, b, a] = rgba.subarray(4 * i, 4 * i + 4);
        if (channels === 1) raw[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
        else raw.set([r, g, b, a].slice(0, channels), channels * i);
      }
      pixels = base64(raw);
      done();
    };
    image.src = url;
  });
}

function show(found, classes) {
  if (!("label" in found)) {
    const told = ([name, value]) => (name === "value" ? "" : name.slice(6) + ": ") + value.toPrecision(6);
    const given = Object.entries(found).filter(([name]) => name.startsWith("value"));
    at("label").textContent = given.map(told).join(", ");
    return;
  }
  at("label").textContent = found.label_name;
  at("sure").textContent = (100 * found.probability).toFixed(1) + " % sure" +
    (found.answered === false ? "; below the model's threshold, so better not answered" : "");
  const order = found.probabilities.map((p, i) => [p, i]).sort((a, b) => b[0] - a[0]);
  const body = at("bars");
  body.replaceChildren();
  for (const [p, i] of order.slice(0, 10)) {
    const line = body.insertRow(), head = document.createElement("th");
    head.scope = "row"; head.textContent = classes[i];
    line.append(head);
    const track = document.createElement("div"), bar = document.createElement("div");
    track.className = "track"; bar.className = "bar"; bar.style.width = 100 * p + "%";
    track.append(bar); line.insertCell().append(track);
    line.insertCell().textContent = (100 * p).toFixed(1) + " %";
  }
  at("more").textContent = order.length > 10 ? "and " + (order.length - 10) + " less probable classes" : "";
}

async function run() {
  at("go").disabled = true;
  at("problem").textContent = ""; at("answer").hidden = true; at("result").hidden = false;
  try {
    const body = JSON.stringify({rows: [row()]});
    const asked = ask("predict", {method: "POST", headers: {"Content-Type": "application/json"}, body});
    const found = (await asked).rows[0];
    if (!model.value) names = names || (await ask("metadata")).class_names;
    show(found, names);
    at("answer").hidden = false;
  } catch (error) {
    at("problem").textContent = error.message;
  }
  at("go").disabled = false;
}

at("form").addEventListener("submit", event => { event.preventDefault(); run(); });
if (model.kind === "image") at("file").addEventListener("change", async event => {
  const file = event.target.files[0];
  if (!file) return;
  const url = URL.createObjectURL(file);
  pixels = null;
  try { await read(url); await run(); } catch (error) {
    at("result").hidden = false; at("answer").hidden = true; at("problem").textContent = error.message;
  }
  URL.revokeObjectURL(url);
});
else for (const box of document.querySelectorAll("textarea")) box.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
});

/* ?COLUMN=...&run=1 fills the boxes and asks; numbers=1,2,3 and image=BASE64 likewise. */
(async () => {
  const given = new URLSearchParams(location.search);
  if (model.kind === "text")
    model.columns.forEach((name, i) => { if (given.has(name)) at("text" + i).value = given.get(name); });
  else if (model.kind === "table")
    model.columns.forEach((name, i) => { if (given.has(name)) at("cell" + i).value = given.get(name); });
  else if (model.kind === "numeric" && given.has("numbers")) at("numbers").value = given.get("numbers");
  else if (given.has("image")) {
    const data = given.get("image").replaceAll(" ", "+");
    try { await read("data:image/png;base64," + data); } catch { pixels = data; }
  }
  if (given.get("run") === "1") run();
})();
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash(SCRIPT)}; style-src {_hash(STYLE)}; connect-src 'self'; "
        "img-src 'self' blob: data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def render(schema: RequestSchema, needs_token: bool) -> bytes:
    """The page for a model's kind and columns."""
    info = schema.info
    kind = "numeric" if schema.pixel_columns else info.kind if schema.table is None else "table"
    size = 1
    for part in info.input_shape:
        size *= part
    model: dict[str, Any] = {
        "kind": kind,
        "columns": schema.columns,
        "shape": info.input_shape,
        "numbers": size,
        "listed": schema.listed,
        "token": needs_token,
        "value": not target_of(info.target).classified,
        "words": [column.values is not None for column in schema.table.columns] if schema.table else [],
    }
    token = '<div class="field"><label for="token">Token</label><input id="token" type="password"></div>'
    data = json.dumps(model).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Try the model</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Try the model</h1>
<p class="soft">{html.escape(_about(schema, size))}</p>
<form id="form">
{token if needs_token else ""}{_fields(schema, kind, size)}
<button id="go">Predict</button>
</form>
<section id="result" aria-live="polite" aria-label="Answer" hidden>
<pre id="problem" class="wrong"></pre>
<div id="answer" hidden>
<p id="label"></p>
<p id="sure" class="soft"></p>
<table aria-label="Probabilities"><tbody id="bars"></tbody></table>
<p id="more" class="soft"></p>
</div>
</section>
<details><summary>From a program</summary>
<pre>{html.escape(_curl(schema, needs_token))}</pre>
<p class="soft"><a href="openapi.json">openapi.json</a> describes bodies and answers,
<a href="metrics">metrics</a> is for Prometheus.</p>
</details>
</main>
<noscript><p>This page asks the server by JavaScript; without it, use the request above.</p></noscript>
<script type="application/json" id="model">{data}</script>
<script>{SCRIPT}</script>
</body>
</html>
""".encode()


def _fields(schema: RequestSchema, kind: str, size: int) -> str:
    if kind == "text":
        return "\n".join(
            f'<div class="field"><label for="text{i}">{html.escape(name)}</label>'
            f'<textarea id="text{i}" rows="3" spellcheck="false"></textarea></div>'
            for i, name in enumerate(schema.columns)
        )
    if kind == "image":
        return (
            '<div class="field"><label for="file">Image</label>'
            '<input id="file" type="file" accept="image/*"><canvas id="canvas" hidden></canvas></div>'
        )
    if schema.table is not None:
        return "\n".join(
            _cell(i, name, column.values)
            for i, (name, column) in enumerate(zip(schema.columns, schema.table.columns, strict=True))
        )
    names = schema.columns if len(schema.columns) > 1 else []
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return (
        f'<div class="field"><label for="numbers">{size} numbers</label><p class="soft">'
        f'{html.escape(shown or "separated by commas")}</p><textarea id="numbers" rows="3"></textarea></div>'
    )


def _cell(i: int, name: str, words: tuple[str, ...] | None) -> str:
    """A box of a table's column; with the known words to choose from, where it takes words."""
    known = "".join(f'<option value="{html.escape(word)}">' for word in (words or ())[:MOST_SHOWN])
    return (
        f'<div class="field"><label for="cell{i}">{html.escape(name)}</label>'
        f'<input id="cell{i}" {"" if words is None else f"list=words{i}"} autocomplete="off" '
        f'placeholder="{"a number" if words is None else "a word"}, or nothing">'
        + (f'<datalist id="words{i}">{known}</datalist>' if words is not None else "")
        + "</div>"
    )


def _about(schema: RequestSchema, size: int) -> str:
    info = schema.info
    takes = {
        "text": "a text" if len(schema.columns) == 1 else f"{len(schema.columns)} texts",
        "numeric": f"{size} numbers" if schema.table is None else f"{len(schema.columns)} columns",
        "image": f"an image, scaled to {'x'.join(map(str, info.input_shape))} (height, width, channels)",
    }[info.kind]
    gives = f"gives {info.num_classes} numbers" if info.num_classes > 1 else "gives a number"
    if target_of(info.target).classified:
        gives = f"chooses among {info.num_classes} classes"
    return f"It takes {takes}, and {gives}."


def _curl(schema: RequestSchema, needs_token: bool) -> str:
    body = json.dumps(schema.example())
    body = body if len(body) < 200 else '{"rows": [{"' + schema.columns[0] + '": ...}]}'
    token = " -H 'Authorization: Bearer TOKEN' \\\n " if needs_token else ""
    return f"curl URL/predict \\\n {token} -H 'Content-Type: application/json' \\\n  -d '{body}'"
