"""What a certificate says in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.certify.result import (
    Check,
    Control,
    Divergence,
    Findings,
    IdentityCheck,
    NotRun,
    SamplingCheck,
    Verdict,
)
from outrider.types import Guarantee

TITLES: dict[Verdict, str] = {
    "passed": "Passed",
    "wrong": "Wrong",
    "inconclusive": "Inconclusive",
    "relaxed": "Relaxed",
    "incomplete": "Incomplete",
}
TONES = {"passed": "good", "wrong": "bad", "inconclusive": "warn", "relaxed": "warn", "incomplete": "warn"}
NAMES = {
    "greedy": "Greedy texts",
    "batch": "In one batch",
    "seeded": "Seeded texts",
    "parameters": "Every parameter on",
    "sampling": "Law of samples",
    "divergence": "Measured divergence",
}


def summary(verdict: Verdict, presets: Sequence[Findings]) -> str:
    """The certificate in one sentence."""
    names = {kind: [each.name for each in presets if each.verdict == kind] for kind in TITLES}
    if verdict == "incomplete":
        return "The run was ended before all checks were made; what is below was found until then."
    if len(presets) == 1:
        return presets[0].summary
    told = {
        "wrong": "changed what the model says",
        "inconclusive": "could not be told: a check missed a fault that was made on purpose",
        "passed": "changed nothing that could be found",
        "relaxed": "changes the law, as it declares",
    }
    parts = [f"{_joined(names[kind])} {words}" for kind, words in told.items() if names[kind]]  # type: ignore[index]
    return "; ".join(parts) + "."


def findings_summary(
    verdict: Verdict, guarantee: Guarantee, checks: Sequence[Check], controls: Sequence[Control]
) -> str:
    """One method in one sentence."""
    texts = [check for check in checks if isinstance(check, IdentityCheck)]
    whole, ties = sum(check.texts for check in texts), sum(check.ties for check in texts)
    if verdict == "incomplete":
        return "Not all checks were made."
    if verdict == "relaxed":
        return _relaxed([check for check in checks if isinstance(check, Divergence)])
    if verdict == "wrong":
        return f"It changes what the model says: {_faults(checks)}."
    if verdict == "inconclusive":
        missed = [f"{control.name} ({control.of})" for control in controls if not control.caught]
        if not missed:
            return "No check was made that could have found anything."
        return f"Nothing wrong was found, but the checks do not prove it: see {_joined(missed)}."
    said = f"all {_count(whole, 'text')} {'is that' if whole == 1 else 'are those'} of plain decoding"
    if ties:
        same = sum(check.identical for check in texts)
        said = f"no text differs from plain decoding by more than rounding ({same} of {whole} identical, "
        said += f"{ties} {'parts' if ties == 1 else 'part'} at a tie)"
    sampled = [check for check in checks if isinstance(check, SamplingCheck)]
    if sampled:
        said += f", and samples have its law (a distance of {seen(sampled[0]):.2g} would have been found)"
    elif guarantee is not Guarantee.IDENTICAL:
        said += "; nothing was tested above temperature 0"
    return said[0].upper() + said[1:] + "."


def _faults(checks: Sequence[Check]) -> str:
    faults = []
    texts = [check for check in checks if isinstance(check, IdentityCheck)]
    wrong = sum(check.wrong for check in texts)
    if wrong:
        faults.append(
            f"{wrong} of {_count(sum(check.texts for check in texts), 'text')} are not those of plain decoding"
        )
    for check in checks:
        if isinstance(check, SamplingCheck) and check.status == "wrong":
            faults.append("its samples have another law" if not check.failed else "some samples end with an error")
    return ", and ".join(faults)


def evidence(check: Check) -> str:
    """What a check found, in one sentence."""
    if isinstance(check, NotRun):
        return f"Not run: {check.reason}."
    if isinstance(check, Divergence):
        return _relaxed([check])
    if isinstance(check, IdentityCheck):
        return _texts(check)
    least = min(check.tests, key=lambda test: test.adjusted)
    each = f"{check.samples} continuations of {_count(len(check.contexts), 'text')}, {check.tokens} tokens long"
    found = f"smallest p-value {small(least.adjusted)} ({least.name}; wrong would be below {check.level:g})"
    failed = f" {_count(check.failed, 'continuation')} ended with an error." if check.failed else ""
    return f"{each}: {found}.{failed}{_drafts(check)}"


def seen(check: SamplingCheck) -> float:
    """The distance between laws of the next token that the check would have found; of its best test where it is not
    among them."""
    found = {test.name: test.detectable for test in check.tests}
    return found.get("next tokens", min(found.values()))


def small(p_value: float) -> str:
    """A p-value; one too small for a float is not nothing."""
    return f"{p_value:.2g}" if p_value > 0 else "below 1e-300"


def _texts(check: IdentityCheck) -> str:
    said = f"{check.identical} of {_count(check.texts, 'text')} identical"
    if check.ties:
        said += f", {check.ties} {'parts' if check.ties == 1 else 'part'} at a tie"
    if check.wrong:
        said += f", {check.wrong} wrong"
    if check.compared < check.tokens:
        said += f"; {check.compared} of {check.tokens} tokens could be compared"
    else:
        said += f", {check.tokens} tokens"
    return f"{said}.{_drafts(check)}"


def _drafts(check: IdentityCheck | SamplingCheck) -> str:
    if not check.drafted:
        return " Nothing was drafted."
    return f" {check.accepted} of {_count(check.drafted, 'drafted token')} accepted."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _relaxed(found: Sequence[Divergence]) -> str:
    if not found:
        return "It changes the law, as it declares."
    each = found[0]
    said = (
        f"It changes the law, as it declares: {100 * each.agreement:.1f} % of greedy tokens are the model's own choice"
    )
    if each.first_tokens is not None:
        said += f", first tokens are {each.first_tokens.estimate:.2f} away in total variation"
    return said + "."


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def verdict_of(relaxed: bool, complete: bool, checks: Sequence[Check], controls: Sequence[Control]) -> Verdict:
    """Wrong outweighs everything; without controls that were all caught, and checks that ran, nothing has passed."""
    if any(check.status == "wrong" for check in checks):
        return "wrong"
    if not complete:
        return "incomplete"
    if relaxed:
        return "relaxed"
    ran = [check for check in checks if not isinstance(check, NotRun)]
    return "passed" if ran and controls and all(control.caught for control in controls) else "inconclusive"
