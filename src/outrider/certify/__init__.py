"""Does a method change what a model says? Differences told apart, and certificates.

>>> certificate = certify(LLM("smollm2-135m"), "sam")                        # doctest: +SKIP
>>> certificate.verdict, certificate.summary                                 # doctest: +SKIP
"""

from __future__ import annotations

from outrider.certify.certificate import Certifier, certify
from outrider.certify.ground import Plan, Progress
from outrider.certify.identity import Difference, classify, first_difference
from outrider.certify.result import Certificate, Findings

__all__ = [
    "Certificate",
    "Certifier",
    "Difference",
    "Findings",
    "Plan",
    "Progress",
    "certify",
    "classify",
    "first_difference",
]
