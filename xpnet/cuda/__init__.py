"""What CUDA alone needs: the pinned ring that feeds a device from host memory, and steps as few launches."""

from xpnet.cuda.launch import CudaLauncher
from xpnet.cuda.ring import CudaDevice, DeviceMemoryError, Filling, Ring, Timing, gathered
from xpnet.cuda.steps import Inputs, Steps

__all__ = [
    "CudaDevice",
    "CudaLauncher",
    "DeviceMemoryError",
    "Filling",
    "Inputs",
    "Ring",
    "Steps",
    "Timing",
    "gathered",
]
