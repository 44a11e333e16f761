"""Attention of diffusers' layers over the step's group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb

from executor import attention


class GroupAttention:
    """An attention processor for self-attention, and for the joint attention of text and image tokens.

    Args:
        alone: attends for the layers that are not given text apart: by default over all tokens of the
            step's sequence.
    """

    def __init__(
        self, alone: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = attention.attend
    ) -> None:
        self._alone = alone

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,  # noqa: ARG002  (there is none)
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = _norm(attn.norm_q, query), _norm(attn.norm_k, key)
        if encoder_hidden_states is not None:
            text_query, text_key, text_value = (
                project(encoder_hidden_states).unflatten(-1, (attn.heads, -1))
                for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            )
            query = torch.cat([_norm(attn.norm_added_q, text_query), query], dim=1)
            key = torch.cat([_norm(attn.norm_added_k, text_key), key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        attend = self._alone if encoder_hidden_states is None else attention.attend
        out = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        out = out.transpose(1, 2).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            # FLUX's single blocks have an output layer of their own.
            return out if attn.pre_only else attn.to_out[1](attn.to_out[0](out))
        text = encoder_hidden_states.shape[1]
        # Contiguous, as they are where a member has tokens of one kind: layers round otherwise where not.
        text_out, image_out = out[:, :text].contiguous(), out[:, text:].contiguous()
        if not attn.context_pre_only:
            text_out = attn.to_add_out(text_out)
        return attn.to_out[1](attn.to_out[0](image_out)), text_out


def _norm(layer: torch.nn.Module | None, heads: torch.Tensor) -> torch.Tensor:
    return heads if layer is None else layer(heads)
