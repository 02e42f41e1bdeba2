"""Our attention, registered with transformers under the name ``outrider``, and the masks it reads.

transformers hands an attention function whatever keyword arguments the model was called with. ``HFModel`` passes an
``AttentionPlan`` that way. Three silent traps of stock transformers are closed here, each with a test:

* an attention function without a registered *mask* function is called unmasked, that is bidirectionally: both are
  registered, so ``model.generate`` on a model we drive stays right too;
* a boolean 4-D mask given to ``eager`` attention is *added* as 0 and 1: additive masks are built for it instead;
* a sliding window that a layer is meant to have but does not hand over would be lost: the plan counts calls and
  windows, and ``HFModel`` compares them with the configuration once, when it is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from outrider.cache.base import KVStore
    from outrider.model.base import Block

NAME = "outrider"
_SETTING = "_attn_implementation_internal"


class AttentionPlan:
    """Which slots each new token sees, worked out once per forward and shared by all layers.

    ``additive(window)`` gives f[B,1,N,S] with 0 where a token looks and -inf where it does not, or None where
    nothing is hidden. ``causal`` says that the plain lower triangle describes it all (a prompt from its start).
    """

    def __init__(self, block: Block, store: KVStore, first_row: int, device: torch.device) -> None:
        b, n = block.shape
        self.block, self.device = block, device
        self.past = store.lengths[first_row : first_row + b]
        self.slots = max(self.past) + block.offset + n
        self.even = min(self.past) == max(self.past)
        self.causal = block.ancestors is None and n > 1 and block.offset == 0 and self.past == [0] * b
        self.windows: list[int | None] = []
        """Window of every attention call of the running forward (None: full attention)."""
        self._additive: dict[tuple[int | None, torch.dtype, int], Tensor | None] = {}
        self._visible: Tensor | None = None

    @property
    def trivial(self) -> bool:
        """Every new token sees every slot (siblings of an earlier level are slots that it does not see)."""
        return self.block.shape[1] == 1 and self.even and (self.block.ancestors is None or self.block.offset == 0)

    def visible(self) -> Tensor:
        """b[B,N,S] without regard to windows."""
        if self._visible is None:
            b, n = self.block.shape
            past = torch.tensor(self.past, device=self.device)[:, None]
            slot = torch.arange(self.slots, device=self.device)
            node = slot - past  # i64[B,S]: index into the tree, negative in the past
            if self.block.ancestors is None:
                last = self.block.offset + torch.arange(n, device=self.device)
                seen = node[:, None, :] <= last[None, :, None]
            else:
                total = self.block.offset + n
                index = node.clamp(0, total - 1)[:, None, :].expand(b, n, self.slots)
                new = self.block.ancestors.gather(2, index) & (node < total)[:, None, :]
                seen = new | (node < 0)[:, None, :]
            self._visible = seen
        return self._visible

    def _within(self, window: int) -> Tensor:
        """b[B,N,S]: slots at most ``window - 1`` positions behind the token."""
        b, n = self.block.shape
        past = torch.tensor(self.past, device=self.device)[:, None]
        slot = torch.arange(self.slots, device=self.device).expand(b, self.slots)
        if self.block.depth is None:
            depth = (self.block.offset + torch.arange(n, device=self.device)).expand(b, n)
            position = slot
        else:
            depth = self.block.depth
            known = depth if self.block.earlier is None else torch.cat([self.block.earlier, depth], dim=1)
            node = (slot - past).clamp(0, known.shape[1] - 1)
            position = torch.where(slot < past, slot, past + known.gather(1, node))
        return (past + depth)[:, :, None] - position[:, None, :] < window

    def additive(self, window: int | None, dtype: torch.dtype, groups: int = 1) -> Tensor | None:
        """f[B,1,groups*N,S]: the mask of N query rows, repeated for ``groups`` heads that share keys."""
        if window is not None and self.slots <= window:
            window = None
        if window is None and self.trivial:
            return None
        key = (window, dtype, groups)
        if key not in self._additive:
            if groups > 1:
                mask = self.additive(window, dtype)
                self._additive[key] = None if mask is None else mask.repeat(1, 1, groups, 1)
            else:
                seen = self.visible()
                if window is not None:
                    seen = seen & self._within(window)
                mask = torch.zeros(seen.shape, dtype=dtype, device=self.device)
                self._additive[key] = mask.masked_fill_(~seen, float("-inf"))[:, None]
        return self._additive[key]


def attend(
    module: torch.nn.Module,
    query: Tensor,  # f[B,Hq,N,D]
    key: Tensor,  # f[B,Hkv,S,D]
    value: Tensor,  # f[B,Hkv,S,Dv]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of N new tokens over S slots -> f[B,N,Hq,Dv].

    Grouped heads read shared keys in place: their queries are stacked along N instead of copying the keys.
    ``softcap`` (Gemma-2) and ``s_aux`` (attention sinks, GPT-OSS) take the plain product path.
    """
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("position_bias is not supported by outrider's attention")
    b, heads, n, d = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    if plan is None:  # somebody calls the model without us: stock masks, built by the registered mask function
        mask, causal = _stock_mask(attention_mask, query, key)
    else:
        plan.windows.append(sliding_window)
        causal = plan.causal and (sliding_window is None or plan.slots <= sliding_window) and softcap is None
        causal = causal and s_aux is None
        mask = None if causal else plan.additive(sliding_window, query.dtype, groups)
    if causal:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=groups > 1
        )
        return out.transpose(1, 2).contiguous(), None
    if groups > 1:
        query = query.reshape(b, kv_heads, groups * n, d)
        if plan is None and mask is not None:
            mask = mask.expand(-1, 1, -1, -1).repeat(1, 1, groups, 1)
    if softcap is None and s_aux is None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, dropout_p=dropout)
    else:
        scale = d**-0.5 if scaling is None else scaling
        out = _product(query, key, value, mask, scale, softcap, s_aux)
    out = out.reshape(b, heads, n, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None


def _product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax attention written out: scores may be capped, and a sink per query head may soak up mass."""
    scores = (query @ key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        return torch.softmax(scores, dim=-1) @ value
    b, kv_heads, rows, _ = scores.shape
    column = sinks.view(1, kv_heads, -1, 1).to(scores.dtype)  # one per query head: groups of this key head
    column = column.repeat_interleave(rows // column.shape[2], dim=2).expand(b, -1, -1, -1)
    probs = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)
    return probs[..., :-1] @ value


def _stock_mask(mask: Tensor | None, query: Tensor, key: Tensor) -> tuple[Tensor | None, bool]:
    """(additive mask, causal) for a call that stock transformers prepared."""
    n, s = query.shape[2], key.shape[2]
    # Not -inf: a padded token that sees nothing must not become NaN, which would spread over 0 * NaN.
    hidden = torch.finfo(query.dtype).min
    if mask is None:
        if n > 1 and n != s:  # right-aligned triangle: a block behind a stored past
            seen = torch.ones(n, s, dtype=torch.bool, device=query.device).tril(s - n)
            triangle = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, hidden)
            return triangle[None, None], False
        return None, n > 1
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, hidden)
    return mask[..., : key.shape[2]], False


def implementation(hf: torch.nn.Module, name: str) -> None:
    """Let every module of ``hf`` that reads a configuration use the attention function ``name``."""
    for module in hf.modules():  # sub-models share or own a config
        config = getattr(module, "config", None)
        if hasattr(config, _SETTING):
            setattr(config, _SETTING, name)


def _settings(hf: torch.nn.Module) -> list[tuple[Any, str]]:
    """Every configuration of ``hf`` with the attention function it names now."""
    configs = {id(c): c for module in hf.modules() if hasattr(c := getattr(module, "config", None), _SETTING)}
    return [(config, getattr(config, _SETTING)) for config in configs.values()]


@contextmanager
def stock(hf: torch.nn.Module) -> Iterator[None]:
    """Inside, ``hf`` runs with transformers' own eager attention."""
    before = _settings(hf)
    implementation(hf, "eager")
    try:
        yield
    finally:
        for config, name in before:
            setattr(config, _SETTING, name)


@contextmanager
def restored_on_error(hf: torch.nn.Module) -> Iterator[None]:
    """Leave ``hf`` with the attention it came with when the body fails."""
    before = _settings(hf)
    try:
        yield
    except BaseException:
        for config, name in before:
            setattr(config, _SETTING, name)
        raise


def register() -> None:
    """Make the name ``outrider`` known to transformers: the attention *and* its mask function."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
