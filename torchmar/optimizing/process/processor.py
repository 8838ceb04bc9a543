"""The flags of a processor that a variant needs, as far as the one that it was measured on has them."""

from __future__ import annotations

from collections.abc import Sequence

#: Flags of processors that compute with a type, x86 and ARM; by none of them it is emulated, and slow.
FLAGS = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "bf16"),
    "float16": ("amx_fp16", "avx512_fp16", "fphp"),
    "int8": ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp"),
}


def flags() -> frozenset[str]:
    """Return the flags of this processor, as a worker sees them; none where they are not known."""
    from torchmar_handlers.weights import machine

    return machine.cpu_flags()


def needs(dtype: str) -> tuple[str, ...]:
    """Return the need of a variant that computes with a type: one of the flags that this processor has.

    Returns:
        Nothing if it has none of them: then it was as slow here as it is elsewhere.
    """
    own = flags()
    present = [flag for flag in FLAGS[dtype] if flag in own]
    return ("|".join(present),) if present else ()


def all_of(wanted: Sequence[str]) -> tuple[str, ...]:
    """Return those flags that this processor has, each as a need of its own."""
    own = flags()
    return tuple(flag for flag in wanted if flag in own)
