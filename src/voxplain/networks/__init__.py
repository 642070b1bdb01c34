"""Networks, one per file; they import torch and MONAI only."""
