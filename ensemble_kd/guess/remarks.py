"""What is plain to see in the labels and worth saying before hours are spent."""

from __future__ import annotations

from ensemble_kd.guess.counts import Rows

FEW_LABELS = 10
"""Rows of a class below which little can be learned of it."""
FEW_TEST, FEW_VALIDATION = 500, 200
RATIO = 10
MAJORITY = 0.75


def remarks(rows: Rows) -> list[str]:
    """One line each, for people."""
    found = []
    counts = [count for count in rows.per_class if count]
    if counts:
        least, most = min(counts), max(counts)
        name = rows.classes[rows.per_class.index(most)]
        if most > MAJORITY * sum(counts):
            found.append(
                f"{most / sum(counts):.0%} of the labels are {name!r}: look at the report's F1 and balanced "
                "accuracy too, accuracy alone says little"
            )
        elif most >= RATIO * least:
            found.append(
                f"the classes are uneven: {least:,} to {most:,} labelled rows each; rare ones come last"
            )
        few = [rows.classes[i] for i, count in enumerate(rows.per_class) if 0 < count < FEW_LABELS]
        if few:
            shown = ", ".join(map(repr, few[:5])) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
            found.append(
                f"{len(few)} of {len(counts)} classes have fewer than {FEW_LABELS} labelled rows ({shown}); "
                "label more of them, or join them into one"
            )
    if rows.test < FEW_TEST:
        found.append(
            f"{rows.test:,} test rows are few: the verdict's interval will be wide; a larger test split, or "
            "data.test_fraction, narrows it"
        )
    if rows.validation < FEW_VALIDATION:
        found.append(f"{rows.validation:,} validation rows are few to choose by")
    if not rows.transfer > rows.labelled:
        found.append(
            "all rows have labels: unlabelled rows of the same kind (a file unlabelled.*, or rows whose "
            "label is empty) are what a student gains most from"
        )
    return found
