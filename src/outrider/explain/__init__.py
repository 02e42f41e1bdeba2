"""Why an answer came out as it did: every step as a tree, every node with its fate.

record    the typed record that everything else reads
listen    the listener that makes it from outcomes
fates     what became of a node, and why
summary   figures over all steps
watch     attach to an engine or an ``LLM``
trace     a file that holds what the target answered
replay    other drafters and policies over a trace, without the target
sweep     many settings over a trace, ranked
screen    the view in a terminal
page      the view in a browser
"""

from outrider.explain.record import Bonus, Emitted, Explanation, Fate, Node, Plan, Step
from outrider.explain.summary import Summary, summarise
from outrider.explain.watch import Explainer

__all__ = ["Bonus", "Emitted", "Explainer", "Explanation", "Fate", "Node", "Plan", "Step", "Summary", "summarise"]
