"""The test kit: for outrider itself and for authors of plug-ins. Nothing here needs a test framework.

    world        tiny models with a draft model beside them, a tokenizer, a grammar
    decode       run requests through an engine; plain decoding as the reference; the counting invariants
    conformance  what every way of decoding must pass: ``check(make)`` runs all of it
    edges        stop tokens, stop strings, limits, full caches: part of the same suite
    drafters     wrappers that make a drafter always wrong or always right
    loop         the law of the emitted text, through the engine, against an enumerated one
    stats        chi-square tests
    tiny         random transformers models with a byte tokenizer

A plug-in's own test is three lines; any check that fails raises ``AssertionError`` saying what differs::

    from outrider.testing import conformance, loop

    def test_my_preset_conforms():
        conformance.check(lambda: preset("my-preset"))

    def test_my_preset_has_the_law_of_the_target():
        loop.check_law(lambda: preset("my-preset", depth=2), length=4)
"""
