"""Every hand-written kernel of fastcodec, each beside its plain reference; nothing here knows a model or a file format.

Installed as `fastcodec.kernels`.
"""
