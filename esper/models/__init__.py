"""Host networks of the shipped experiments.

Plain PyTorch: no module here imports anything of Esper but its neighbours, and this folder can be taken out
and used alone. All are traceable with ``torch.fx``, keep no state beyond parameters and BatchNorm buffers,
and draw their initial weights from PyTorch's global generator only, so one ``torch.manual_seed`` before
construction fixes them.
"""

from esper.models.mlp import MLP
from esper.models.resnet import ResNet
from esper.models.sequence import SequenceTransformer
from esper.models.transformer import PatchTransformer

__all__ = ["MLP", "PatchTransformer", "ResNet", "SequenceTransformer"]
