"""What the machine gives to training: threads, memory, a GPU, bfloat16."""

import torch


def prepare(threads: int | None = None) -> None:
    """Set the number of CPU threads (None: PyTorch's own), and keep freed memory.

    glibc gives freed memory back to the system as soon as it is more than twice the largest block
    that was ever freed, of 32 MiB at most; an update would ask for its memory anew, page by page,
    each time.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.empty(2**23 - 2**13)  # freed at once: that is what it is for


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 itself; without, it is slower than float32."""
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def default_device() -> str:
    """Return 'cuda' where there is a GPU that PyTorch can use, else 'cpu'."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'
