"""Where networks run, how much fits there, and their arithmetic: bfloat16 where the processor gains from it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import nn

from offmanifold import memory
from offmanifold.networks.network import Network

PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device(device: str) -> torch.device:
    """Return the device meant by ``device``; "auto" takes a CUDA GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} cannot be used here: {reason}") from error
    if chosen.type == "meta":
        raise ValueError("device='meta' cannot be used here: nothing is computed there.")
    return chosen


def memory_of(device: torch.device) -> float:
    """Return the bytes of memory that a device has in all."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return memory.installed()


def gains_from_bfloat16(device: torch.device) -> bool:
    """Say whether the processor multiplies bfloat16 faster than float32.

    As measured (docs/benchmarks.md): Intel's with AMX alone, AMD's with AVX-512's own instructions, too.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    processor = _processor()
    units = {"amx_bf16", "avx512_bf16"} if processor.get("vendor_id") == "AuthenticAMD" else {"amx_bf16"}
    return not units.isdisjoint(processor.get("flags", "").split())


def _processor() -> dict[str, str]:
    """Return what Linux says of the first processor; nothing elsewhere."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = itertools.takewhile(str.strip, file)
            return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    except OSError:
        return {}


def choose_dtype(precision: str, module: nn.Module, device: torch.device) -> torch.dtype:
    """Return the arithmetic for training ``module``: "auto" is bfloat16 for convolutions that gain from it.

    Small dense networks stay in float32: they gain nothing, and energies of tables need the digits.
    """
    if precision == "auto":
        convolutional = any(isinstance(part, Network) and part.convolutional for part in module.modules())
        return torch.bfloat16 if convolutional and gains_from_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@contextlib.contextmanager
def ordinary() -> Iterator[None]:
    """Let PyTorch compute as it does out of the box: what a detector gives hangs on rows and model alone.

    A caller may have set another default type, or be inside of ``torch.autocast`` or a block without gradients.
    """
    default = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if default != torch.float32:
            stack.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(torch.float32)
        yield


@contextlib.contextmanager
def computing_in(dtype: torch.dtype, module: nn.Module) -> Iterator[None]:
    """Let the networks inside ``module`` compute in ``dtype`` within the block."""
    networks = [part for part in module.modules() if isinstance(part, Network)]
    before = [network.compute_dtype for network in networks]
    try:
        for network in networks:
            network.compute_dtype = dtype
        yield
    finally:
        for network, old in zip(networks, before, strict=True):
            network.compute_dtype = old
