"""How the demo checkpoint was made: `python -m moebius_lab.training --work-dir build/training`.

data       free photographs and textures from Debian packages -> an album, and the record of where each came from
generated  pictures drawn while training: lines, patterns, leaves, grain
album      random windows of both, cut and coloured on the device
masks      holes of every shape that a person draws
parallel   one process a GPU
vae        the small autoencoder
decoder    its decoder's second training, for texture
fast_forms the denoiser's slow layers, rewritten for training speed, weights unchanged
depthwise  one of them as a kernel for cards
denoiser   the pool of encoded pictures, and the diffusion training itself
speed      how long a step takes, and where
evaluate   held-out photographs: numbers, and the contact sheet that a person judges
card       the model card's numbers, written from what evaluate and the training left
"""
