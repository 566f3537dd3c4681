"""Be a VM: the program that runs one user's sessions for a host."""

from .daemon import run_vm as run_vm
from .models import PlaneModels as PlaneModels
from .settings import make_vm_settings as make_vm_settings

__all__ = ["PlaneModels", "make_vm_settings", "run_vm"]
