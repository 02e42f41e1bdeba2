"""The certificate as a page."""

from __future__ import annotations

import json

from outrider.certify.result import Certificate, Findings, IdentityCheck, SamplingCheck
from outrider.certify.words import NAMES, TITLES, TONES, evidence, seen, small
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
        plain=plain,
        small=small,
        drawings=[_drawings(found) for found in certificate.presets],
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
                    small(least),
                    f"wrong below {check.level:g}",
                    "bad" if least < check.level else "",
                )
            )
            cards.append(("sees distances of", f"{seen(check):.2g}", "in total variation, 9 times in 10", ""))
    if found.controls:
        caught = sum(control.caught for control in found.controls)
        every = caught == len(found.controls)
        cards.append(("controls", f"{caught} of {len(found.controls)}", "as they must be", "good" if every else "warn"))
    return cards


def _drawings(found: Findings) -> list[tuple[str, list[tuple[float, float]], float]]:
    """(caption, [(height, share of what is expected)], height of what is expected) of where tokens fall in the
    target's law: the method's own, then those of the controls, all to one scale."""
    every = [("this method", check.stripes) for check in found.checks if isinstance(check, SamplingCheck)]
    every += [(f"control: {each.name}", each.stripes) for each in found.controls if each.stripes]
    shares = [(name, [count * len(counts) / max(1, sum(counts)) for count in counts]) for name, counts in every]
    tallest = max((share for _, bars in shares for share in bars), default=1.0)
    return [(name, [(share / tallest, share) for share in bars], 1 / tallest) for name, bars in shares if bars]


def shown(text: str) -> str:
    """A piece of text with what cannot be seen made visible."""
    blank = len(text) - len(text.lstrip(" "))
    text = "␣" * blank + text[blank:]
    return text.replace("\n", "⏎").replace("\t", "⇥") or "the end"


def plain(value: object) -> str:
    """A parameter as one would write it."""
    return json.dumps(value, ensure_ascii=False, default=str).replace('"', "'")
