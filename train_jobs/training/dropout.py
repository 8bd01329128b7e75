"""Dropout of an encoder: which of it is left, and at what price."""

from typing import Any, Final

import torch
from torch import nn

_BYTES: Final = 256  # values of one
_LEAST_INT64: Final = -(2**63)
# As configurations name it.
_ATTENTION_DROPOUT: Final = ("attention_probs_dropout_prob", "attention_dropout")
_OTHER_DROPOUT: Final = (
    "hidden_dropout_prob", "dropout", "seq_classif_dropout", "classifier_dropout",
)  # fmt: skip


def without_dropout(model: Any, *, only_attention: bool = False) -> None:
    """Turns dropout off, in place: all of it, or that of the attention's weights.

    A student is held by its teacher's answers. In attention it slows a step and helps nothing that
    was measured; that of hidden states helps on noisy labels (docs/training.md).
    """
    names = _ATTENTION_DROPOUT if only_attention else (*_ATTENTION_DROPOUT, *_OTHER_DROPOUT)
    for name in names:
        if getattr(model.config, name, None) is not None:
            setattr(model.config, name, 0.0)
    for path, module in model.named_modules():
        # Below the attention, but for what it writes in the end, which is a hidden state.
        attention = "attention" in path and "attention.output" not in path
        if isinstance(module, nn.Dropout) and (attention or not only_attention):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):  # what attention kernels are told
            module.dropout_prob = 0.0


class ByteDropout(nn.Dropout):
    """Dropout whose mask takes a byte of the generator's numbers for each value, not a number.

    On a CPU masks were a fifth of a step: 2.1 against 0.5 ms for 64 messages of 16 tokens (torch
    2.13, 2 cores with AMX). The share dropped is that of the nearest 256th, which scaling knows.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dropped = round(self.p * _BYTES)
        if not self.training or dropped in {0, _BYTES} or input.is_cuda:
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(_LEAST_INT64, None)
        kept = words.view(torch.uint8)[: input.numel()].view(input.shape) >= dropped
        return input * kept.to(input.dtype).mul_(_BYTES / (_BYTES - dropped))


def quick_dropout(model: Any) -> None:
    """Gives a model the quicker dropout, in place; at the same shares, to 1/512."""
    for module in list(model.modules()):
        for name, part in module.named_children():
            if type(part) is nn.Dropout:
                setattr(module, name, ByteDropout(part.p).train(part.training))
