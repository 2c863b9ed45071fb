"""What CUDA alone needs: the pinned ring that feeds a device from host memory."""

from xpnet.cuda.ring import CudaDevice, DeviceMemoryError, Filling, Ring, Timing, gathered

__all__ = ["CudaDevice", "DeviceMemoryError", "Filling", "Ring", "Timing", "gathered"]
