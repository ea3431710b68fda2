"""Small data sets and pretrained weights that are the same on every machine: text, or whole numbers.

For comparing what two versions of the code make of them; nothing here teaches anything.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ensemble_kd.artifacts import write_json

WORDS = (
    "card lost stolen pay payment bank transfer rate euro is it the a my why how can when help with".split()
)
CLASSES = ["cash", "loss", "rate", "sent"]
LAYERS, WIDTH, HEADS, WIDER = 6, 24, 12, 48


def write_texts(folder: Path) -> None:
    folder.mkdir(parents=True)
    draw = np.random.RandomState(0)
    for split, rows in (("train", 400), ("test", 40)):
        lines = [
            f"{' '.join(WORDS[w] for w in draw.randint(0, len(WORDS), 6))} {WORDS[i % 4]} {i},{i % 4}"
            for i in range(rows)
        ]
        (folder / f"{split}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    words = [WORDS[w] for w in draw.randint(0, len(WORDS), 24 * 100)]
    corpus = [" ".join(words[24 * i : 24 * (i + 1)]) for i in range(100)]
    (folder.parent / "corpus.csv").write_text("text\n" + "\n".join(corpus) + "\n")


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    draw = np.random.RandomState(0)
    for split, rows in (("train", 400), ("test", 40)):
        pixels = draw.randint(0, 256, (rows, 28 * 28))
        lines = [json.dumps({"image": pixels[i].tolist(), "label": i % 4}) for i in range(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")


def write_transformer(folder: Path) -> None:
    """A BERT of six blocks with the names of `transformers`, its weights from whole numbers."""
    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *WORDS, *map(str, range(10)), *(f"##{n}" for n in range(10))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 64})
    settings = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(vocabulary),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": WIDER,
        "max_position_embeddings": 64,
    }
    write_json(folder / "config.json", settings)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(vocabulary), WIDTH),
        "embeddings.position_embeddings.weight": (64, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    linear = {"pooler.dense": (WIDTH, WIDTH)}
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        linear |= {f"{at}.attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
        linear |= {f"{at}.attention.output.dense": (WIDTH, WIDTH)}
        linear |= {f"{at}.intermediate.dense": (WIDER, WIDTH), f"{at}.output.dense": (WIDTH, WIDER)}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    draw = np.random.RandomState(1)
    weights = {
        name: (draw.randint(-64, 64, shape) / 512).astype(np.float32) for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def write_pooling(folder: Path) -> None:
    """Beside a transformer: its states are to be read by their mean, in sentence-transformers' words."""
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    said = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", said)


def write_numbers(folder: Path) -> None:
    """Three columns and a value to predict from them."""
    folder.mkdir(parents=True)
    draw = np.random.RandomState(0)
    for split, rows in (("train", 400), ("test", 40)):
        numbers = draw.randint(-100, 100, (rows, 3))
        lines = [f"{a},{b},{c},{a * b / 100 + c}" for a, b, c in numbers.tolist()]
        (folder / f"{split}.csv").write_text("a,b,c,label\n" + "\n".join(lines) + "\n")
