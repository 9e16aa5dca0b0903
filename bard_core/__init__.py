"""Bard: turn an autoregressive vision-language model into a block-diffusion one (BARD, arXiv 2604.16514).

The library is floors; each imports only from those below it (``tests/test_layers.py`` holds them to it):

    cli
    report        promotion
    evaluation    plan
    decoding      training
    data
    models        tracking
    store         lab
    config
    diffusion
"""

__version__ = "0.1.0"
