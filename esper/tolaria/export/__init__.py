"""Export of a grown network as plain Python source and safetensors, to be used without Esper."""

from esper.tolaria.export.network import ExportReport, export_network

__all__ = ["ExportReport", "export_network"]
