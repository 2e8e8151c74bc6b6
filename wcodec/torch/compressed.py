"""The name of `rebuild` in pickles, which stays whatever moves elsewhere."""

from wcodec.torch.resident.compressed import rebuild

__all__ = ["rebuild"]
