"""The certificate as a page."""

from __future__ import annotations

from outrider.certify.result import Certificate, Findings, IdentityCheck, SamplingCheck
from outrider.certify.words import NAMES, TITLES, TONES, evidence
from outrider.pages import render

PROMISES = {
    "identical": "token for token the text of plain decoding, at every temperature",
    "exact": "the distribution of plain decoding; token for token its text at temperature 0",
    "relaxed": "another distribution, within a stated bound",
}


def page(certificate: Certificate) -> str:
    """One self-contained HTML file."""
    presets = ", ".join(found.name for found in certificate.presets)
    return render(
        "verify.html",
        title=f"Certificate: {certificate.model} with {presets or 'nothing yet'}",
        provenance=certificate.provenance,
        certificate=certificate,
        verdict=TITLES[certificate.verdict],
        titles=TITLES,
        tones=TONES,
        names=NAMES,
        promises=PROMISES,
        evidence=evidence,
        cards=[_cards(found) for found in certificate.presets],
        shown=shown,
    )


def _cards(found: Findings) -> list[tuple[str, str, str, str]]:
    """(name, value, small print, tone) of the figures at the head of a method."""
    texts = [check for check in found.checks if isinstance(check, IdentityCheck)]
    whole, same = sum(check.texts for check in texts), sum(check.identical for check in texts)
    ties, wrong = sum(check.ties for check in texts), sum(check.wrong for check in texts)
    cards = []
    if texts:
        cards.append(("texts identical", f"{same} of {whole}", f"{ties} more up to a tie" if ties else "", ""))
        compared, tokens = sum(check.compared for check in texts), sum(check.tokens for check in texts)
        cards.append(("tokens compared", f"{compared}", f"of {tokens}" if compared < tokens else "all", ""))
        cards.append(("wrong texts", f"{wrong}", "", "bad" if wrong else "good"))
    for check in found.checks:
        if isinstance(check, SamplingCheck) and check.tests:
            least = min(test.adjusted for test in check.tests)
            cards.append(
                (
                    "smallest p-value",
                    f"{least:.2g}",
                    f"wrong below {check.level:g}",
                    "bad" if least < check.level else "",
                )
            )
            seen = min(test.detectable for test in check.tests)
            cards.append(("distance it would see", f"{seen:.2g}", "in total variation, 9 times in 10", ""))
    if found.controls:
        caught = sum(control.caught for control in found.controls)
        every = caught == len(found.controls)
        cards.append(("controls", f"{caught} of {len(found.controls)}", "as they must be", "good" if every else "warn"))
    return cards


def shown(text: str) -> str:
    """A piece of text with what cannot be seen made visible."""
    return text.replace("\n", "⏎").replace("\t", "⇥") or "end of text"
