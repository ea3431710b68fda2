"""What was found, in lines for people."""

from __future__ import annotations

from ensemble_kd.guess.choice import Choice
from ensemble_kd.guess.target import some


def found_lines(choice: Choice) -> list[str]:
    """What was found, for people."""
    facts, rows, label = choice.facts, choice.rows, choice.label
    kinds = {"text": "texts", "image": "images", "numeric": "numbers"}
    what = "a table" if choice.inputs.table else kinds[choice.inputs.kind]
    if isinstance(choice.inputs.names, list) and choice.inputs.kind == "text":
        what = "pairs of texts"
    columns = (choice.settings.get("data.columns") or {}).get("label")
    further = columns[1:] if isinstance(columns, list) else []
    target = f"{1 + len(further)} numbers are" if further else "a number is"
    if label is None or label.target == "class":
        target = f"{len(rows.classes)} classes are"
    lines = [f"{facts.path}: {what}, from which {target} to be predicted"]
    held = f"; {' and '.join(rows.held)} held out of train" if rows.held else ""
    unlabelled = rows.transfer - rows.labelled
    lines.append(
        f"  rows: {rows.labelled:,} train with label, {unlabelled:,} without, {rows.validation:,} "
        f"validation, {rows.test:,} test{held}"
    )
    if label is None:
        lines.append(f"  label: the folder ({some(list(rows.classes))})")
        return lines
    names = choice.inputs.names
    shown = names if isinstance(names, str) else some(names)
    lines.append(f"  input: {shown} ({choice.inputs.why})")
    counts = f", {span(rows.per_class)} labelled train rows each" if rows.per_class else ""
    lines.append(f"  label: {' and '.join([label.column.name, *further])} ({label.why}{counts})")
    if choice.inputs.unused:
        lines.append("  not used: " + "; ".join(choice.inputs.unused[:20]))
    return lines


def span(counts: tuple[int, ...]) -> str:
    """`35 to 187`"""
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
