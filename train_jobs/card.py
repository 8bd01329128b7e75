"""A bundle's MODEL_CARD.md: what the model is, what made it, and how far it can be trusted.

In: what the stages before it made. Out: Markdown (Mitchell et al. 2019, "Model Cards for Model
Reporting") in which every figure names its split and rows, with an interval where rows were
counted. It holds no text of any message, so it may be shown where the data may not.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from re import findall
from typing import Any, Final

from cluster.bundles import MODEL, MODEL_ANY, Role
from cluster.files import read_json, write_text
from cluster.intervals import wilson
from serve_app.model.cpu import cpu_flags
from serve_app.model.reliability import BINS
from train_jobs.calibrate import Calibrated
from train_jobs.compress import PARITY, Compressed, Variant
from train_jobs.data import SPLITS, Dataset
from train_jobs.student.vocabulary import TrimCost

CARD: Final = "MODEL_CARD.md"
_SHOWN_LABELS: Final = 20
_SHOWN_CLASSES: Final = 10
_SHOWN_MISTAKES: Final = 3
_FEW_ROWS: Final = 20
_VERSIONED: Final = ("firstline", "torch", "transformers", "onnxruntime", "tokenizers", "numpy")
_USES: Final = {
    "dapt": "domain adaptation of the encoder",
    "train": "fine-tuning",
    "calibration": "choice of the variant, temperature, golden messages",
    "tune": "the figures below, then the gate and the choice of the rule",
    "certify": "not seen by this bundle",
    "test": "not seen by this bundle",
}
_USES_OF_EDGE: Final = {
    "dapt": "domain adaptation of the encoder, text to distil on",
    "train": "fine-tuning of the teacher, distillation",
}


@dataclass(frozen=True)
class ClassFigures:
    """One class: `right` of its `rows` were found, out of `answers` that named it."""

    label: str
    rows: int
    right: int
    answers: int
    taken_for: tuple[tuple[str, int], ...]  # the commonest mistakes first


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a card is made of. `truth` and `answers` are label numbers of `tune`, in step."""

    role: Role
    compressed: Compressed
    calibrated: Calibrated
    anywhere: Calibrated | None
    dataset: Dataset
    recipe: Mapping[str, Any]
    vocabulary: TrimCost | None
    truth: Sequence[int]
    answers: Sequence[int]
    made_on: date
    versions: Mapping[str, str]
    cpu: Collection[str]

    @property
    def artifacts(self) -> list[tuple[str, Variant, Calibrated]]:
        """File name in the bundle, variant and calibration of each model file, best first."""
        named = {variant.name: variant for variant in self.compressed.variants}
        found = [(MODEL, self.compressed.chosen, self.calibrated)]
        if self.anywhere and self.compressed.choice.anywhere:
            found.append((MODEL_ANY, named[self.compressed.choice.anywhere], self.anywhere))
        return found


def worst_classes(
    truth: Sequence[int], answers: Sequence[int], labels: Sequence[str], most: int = _SHOWN_CLASSES
) -> list[ClassFigures]:
    """The classes with the lowest recall, the worst first; none that was always found.

    Args:
        truth, answers: label numbers (n,), in step.
        most: how many classes at most. Of two alike the one with more rows comes first.
    """
    pairs = Counter(zip(truth, answers, strict=True))
    rows, named = Counter(truth), Counter(answers)

    def mistakes(label: int) -> tuple[tuple[str, int], ...]:
        found = [(-n, got) for (was, got), n in pairs.items() if was == label != got]
        return tuple((labels[got], -n) for n, got in sorted(found)[:_SHOWN_MISTAKES])

    missed = [label for label in rows if pairs[label, label] < rows[label]]
    missed.sort(key=lambda label: (pairs[label, label] / rows[label], -rows[label], label))
    return [
        ClassFigures(labels[i], rows[i], pairs[i, i], named[i], mistakes(i)) for i in missed[:most]
    ]


def small_classes(truth: Sequence[int], labels: Sequence[str]) -> list[tuple[str, int]]:
    """Names and rows of the classes with too few rows for a figure of their own."""
    rows = Counter(truth)
    return [(label, rows[i]) for i, label in enumerate(labels) if rows[i] < _FEW_ROWS]


def card(facts: Facts) -> str:
    """The whole card. The same facts give the same text."""
    sections = (_what, _data, _recipe, _figures, _parity, _reliability, _confusion, _limits)
    return "\n\n".join(part for section in sections for part in section(facts)) + "\n"


def warned(text: str, warnings: Sequence[str]) -> str:
    """A finished card with a section of warnings before all others."""
    points = "\n".join(f"- {_code(warning)}" for warning in warnings)
    before, heading, after = text.partition("\n## ")
    section = f"\n## Warnings\n\nThe gate found, and a user accepted:\n\n{points}\n"
    return f"{before}{section}{heading}{after}"


def write(
    role: Role,
    compressed: Compressed,
    calibrated: Calibrated,
    anywhere: Calibrated | None,
    dataset: Dataset,
    recipe: Mapping[str, Any],
) -> Path:
    """Asks the model about `tune` once, and writes the card beside its variants."""
    texts, truth = dataset.labelled("tune")
    trimmed = read_json(compressed.path / PARITY).get("vocabulary")
    facts = Facts(
        role=role,
        compressed=compressed,
        calibrated=calibrated,
        anywhere=anywhere,
        dataset=dataset,
        recipe=recipe,
        vocabulary=TrimCost(**trimmed) if trimmed else None,
        truth=truth,
        answers=compressed.open().logits(texts).argmax(-1).tolist(),
        made_on=datetime.now(UTC).date(),
        versions={name: version(name) for name in _VERSIONED},
        cpu=cpu_flags(),
    )
    target = compressed.path / CARD
    write_text(target, card(facts))
    return target


# ---- sections, each a list of paragraphs ---------------------------------------------------------


def _what(facts: Facts) -> list[str]:
    labels = facts.dataset.labels
    left = len(labels) - _SHOWN_LABELS
    names = ", ".join(map(_code, labels[:_SHOWN_LABELS]))
    names += f" and {left} more" if left > 0 else ""
    rows = [
        ("role", facts.role),
        ("base encoder", _code(facts.recipe["dapt"]["base"])),
        ("labels", f"{len(labels)}: {names}"),
        ("tokens of a message, at most", str(facts.compressed.max_tokens)),
        ("made on", facts.made_on.isoformat()),
        ("made with", ", ".join(f"{name} {number}" for name, number in facts.versions.items())),
    ]
    return [
        f"# Model card: {facts.role} classifier",
        "A text classifier in ONNX, one of a pair made by Firstline: the edge model answers what "
        "it can be trusted with, the cloud model the rest.",
        _table(("", ""), rows),
    ]


def _data(facts: Facts) -> list[str]:
    uses = _USES | (_USES_OF_EDGE if facts.role == "edge" else {})
    splits = [(_code(name), f"{facts.dataset.rows[name]:,}", uses[name]) for name in SPLITS]
    notes = [(name.replace("_", " "), f"{n:,}") for name, n in sorted(facts.dataset.notes.items())]
    return [
        "## Data",
        f"Dataset {_code(facts.dataset.fingerprint)}. A row is in exactly one split, but `dapt` "
        "holds the text of `train` too, with that of unlabelled files.",
        _table(("split", "rows", "used for"), splits),
        _table(("preparation of the labelled files", "rows"), notes),
    ]


def _recipe(facts: Facts) -> list[str]:
    stages = {name: what for name, what in facts.recipe.items() if isinstance(what, Mapping)}
    others = {name: what for name, what in facts.recipe.items() if name not in stages}
    parts = ["## Recipe"]
    for name, options in (*stages.items(), ("chosen", others)):
        if name == "recipe":
            parts += _tried(options)
            continue
        rows = [
            (_code(option), _code(value))
            for option, value in options.items()
            if option != "candidates"  # what came of them stands below
        ]
        parts += [f"### {name}", _table(("option", "value"), rows)]
    return parts


def _tried(recipe: Mapping[str, Any]) -> list[str]:
    """What competed for the cloud's recipe, and what each reached."""
    chosen, rows = recipe["chosen"], recipe["rows"]
    start = {"probe": "linear probe; two fits averaged", "new": "random head"}[chosen["head"]]
    table = [
        (
            _code(one["name"]),
            f"{100 * one['share']:.0f}%",
            _share(round(one["accuracy"] * rows), rows),
            f"{one['log_loss']:.4f}",
        )
        for one in recipe["tried"]
    ]
    return [
        "### recipes that were tried",
        f"Short fits, judged on {rows:,} rows held out of `train`, which the model has learned "
        f"from since. Chosen: a rate of {chosen['learning_rate']:g}, starting from a {start}. "
        f"Labels are smoothed by {chosen['smoothing']:g}. *Run* is the share of "
        "the short fit before it was stopped; *log-loss* is calibrated.",
        _table(("candidate", "run", "accuracy", "log-loss"), table),
    ]


def _figures(facts: Facts) -> list[str]:
    judged = facts.calibrated.accuracy
    rows = [
        (
            _code(file),
            _code(variant.name),
            _share(round(made.accuracy.value * made.accuracy.rows), made.accuracy.rows),
            f"{made.before.value:.4f}",
            f"{made.after.value:.4f}",
            f"{made.temperature:.4f}",
        )
        for file, variant, made in facts.artifacts
    ]
    return [
        f"## Figures on {_code(judged.split)}",
        f"On the {judged.rows:,} rows of {_code(judged.split)}, on which nothing was fitted or "
        "chosen; the temperature is fitted on `calibration`. Here and below, brackets hold the 95% "
        f"Wilson score interval. The expected calibration error (ECE) is over {BINS} bins.",
        _table(("file", "variant", "accuracy", "ECE before temperature", "after", "temperature"),
               rows),
    ]  # fmt: skip


def _parity(facts: Facts) -> list[str]:
    chosen = {variant.name: file for file, variant, _ in facts.artifacts}
    first = facts.compressed.variants[0]
    rows = [_variant(item, chosen.get(item.name)) for item in facts.compressed.variants]
    parts = [
        "## Parity of variants",
        f"Each variant against exported {_code(first.name)} on the {first.rows:,} rows of "
        f"{_code(first.split)}, from which the choice was made, one message per run. Times are of "
        "some of these rows, on one thread. *Company*: answers that changed in any bit when served "
        "beside others. *Batched*: labels, and decisions at a confidence of 0.9, that would change "
        "if messages shared a run, which they never do in Firstline. A variant that this CPU does "
        "not compute as meant is left out.",
        _table(
            ("variant", "chosen", "CPU must have", "MB", "p50 ms", "p95 ms", "labels changed",
             "accuracy", "company", "batched: labels", "batched: decisions"),
            rows,
        ),
        "![parity](parity.png)",
    ]  # fmt: skip
    return parts + (_trimmed(facts.vocabulary) if facts.vocabulary else [])


def _variant(variant: Variant, file: str | None) -> tuple[str, ...]:
    def counted(share: float) -> str:
        return f"{round(share * variant.rows)} ({share:.2%})"

    return (
        _code(variant.name),
        f"**{_code(file)}**" if file else "",
        ", ".join(variant.needs),
        f"{variant.size_bytes / 1e6:.2f}",
        f"{variant.p50_ms:.2f}",
        f"{variant.p95_ms:.2f}",
        counted(variant.label_flips_share),
        _share(round(variant.accuracy * variant.rows), variant.rows),
        str(variant.company_changes),
        counted(variant.batched_label_flips_share),
        counted(variant.batched_decision_flips_share),
    )


def _trimmed(cost: TrimCost) -> list[str]:
    rows = [
        ("tokens per message", f"{cost.tokens_per_message_before:.2f}",
         f"{cost.tokens_per_message_after:.2f}"),
        ("share of tokens that are unknown", f"{cost.unknown_share_before:.3%}",
         f"{cost.unknown_share_after:.3%}"),
        ("messages of unknown tokens only", f"{cost.all_unknown_before:.0f}",
         f"{cost.all_unknown_after:.0f}"),
    ]  # fmt: skip
    return [
        "### The vocabulary, cut to the domain",
        f"On the {cost.messages:,.0f} messages of `calibration`, whose text did not choose the "
        f"vocabulary; {cost.retokenised_share:.1%} of them are read in other pieces than before.",
        _table(("", "whole", "cut"), rows),
    ]


def _reliability(facts: Facts) -> list[str]:
    judged = facts.calibrated.after
    return [
        "## Reliability",
        f"Of {_code(MODEL)}, on the {judged.rows:,} rows of {_code(judged.split)}.",
        f"![reliability]({facts.calibrated.diagram.name})",
    ]


def _confusion(facts: Facts) -> list[str]:
    found = worst_classes(facts.truth, facts.answers, facts.dataset.labels)
    title, rows = "## The hardest classes", f"the {len(facts.truth):,} rows of `tune`"
    if not found:
        return [title, f"None: {_code(MODEL)} missed no class on {rows}."]
    table = [
        (
            _code(item.label),
            str(item.rows),
            _share(item.right, item.rows),
            _share(item.right, item.answers),
            ", ".join(f"{_code(name)} ({n})" for name, n in item.taken_for),
        )
        for item in found
    ]
    return [
        title,
        f"By recall, {_SHOWN_CLASSES} at most, of {_code(MODEL)} on {rows}. Picked out for being "
        "the lowest, they look worse here than they will on new messages.",
        _table(("class", "rows", "recall", "precision", "taken for, most often"), table),
    ]


def _limits(facts: Facts) -> list[str]:
    few = small_classes(facts.truth, facts.dataset.labels)
    names = ", ".join(f"{_code(label)} ({n})" for label, n in few)
    flags = ", ".join(map(_code, sorted(facts.cpu))) or "none of the flags that variants ask for"
    chosen = facts.compressed.chosen
    flips = round(chosen.batched_label_flips_share * chosen.rows)
    points = [
        "**Other languages and domains** than those of the data: nothing here speaks for them.",
        "**Messages unlike the rows of `tune`**: every figure is of messages exchangeable with "
        "them. If customers, products or the season change, it no longer holds.",
        "**Messages of no class**: it always answers with one of its labels.",
        f"**Classes with few rows**, too few for a figure of their own. Fewer than {_FEW_ROWS} of "
        f"`tune` have {len(few)} of {len(facts.dataset.labels)}: {names or 'none'}.",
        "**Personal data** is masked before the model sees a message, in training as in serving. "
        "Whoever runs the model elsewhere has to mask first. The detector has misses, such as "
        "names and postal addresses.",
        f"**Long messages** are cut: what stands behind {facts.compressed.max_tokens} tokens is "
        "not read.",
        f"**Other machines.** All was measured on one CPU; of CPU flags it has {flags}. Times are "
        "of that machine, and kernels of others may differ in the last bits.",
        "**Several messages per run.** Dynamic int8 scales activations over the whole run, so it "
        f"is exact with one message per run only. Batched, {flips} of {chosen.rows:,} labels of "
        f"`calibration` would change in {_code(chosen.name)}.",
    ]
    return ["## Limits", "What it must not be trusted with:", "\n".join(f"- {p}" for p in points)]


def _code(value: object) -> str:
    """Any text as inline code: nothing in it is Markdown, HTML or a link, whatever it says."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, findall("`+", text)), default=0))
    # A space inside each fence is not shown, and keeps a backtick of the text's own apart.
    pad = " " if not text or "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table looks for pipes before anything else, so they are escaped in inline code too."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join(map(line, (header, ["---"] * len(header), *rows)))


def _share(count: int, of: int) -> str:
    """A share with its counts, and in brackets the 95% Wilson score interval."""
    if not of:
        return "no rows"
    low, high = wilson(count, of)
    return f"{count / of:.1%} of {of:,} ({low:.1%} to {high:.1%})"
