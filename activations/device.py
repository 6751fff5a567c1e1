"""The device that a user named: whether it can be used here."""

from activations.errors import UserError


def require_device(device: str) -> None:
    """Checks that tensors can be made on a device.

    Raises:
        UserError: if torch does not know it, or was built or is run without it.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"The device {device} cannot be used here ({reason}); choose another --device.") from None
