"""Other programs on the same prompts: ``transformers.generate``, llama-cpp-python, openvino-genai, where installed."""

from outrider.bench.peers.base import Exports, Peer, PeerRun, PeerSetup
from outrider.bench.peers.runner import PeerRunner, list_peers, open_peers

__all__ = ["Exports", "Peer", "PeerRun", "PeerRunner", "PeerSetup", "list_peers", "open_peers"]
